"""The report of a study: a self-contained page, the same numbers as CSV and JSON, a LaTeX table, figures as files."""

from pathlib import Path

from eval.study.report.compare import RESAMPLES
from eval.study.report.digest import digested
from eval.study.report.figures import figure_files, figures
from eval.study.report.latex import latex_text
from eval.study.report.page import page_text
from eval.study.report.tables import csv_text, json_text
from eval.study.results import Results
from robust_models.runtime.files import whole_file

__all__ = ["write_report"]
FIGURES = "figures"  # folder of every plot as SVG and PDF


def write_report(results: Results, out: Path, *, resamples: int = RESAMPLES) -> dict[str, str]:
    """Writes out/report.html, results.csv, results.json, table.tex and figures/, each file whole; gives kind -> path.

    Takes a study as far as it got: failed and missing cells are listed. UserError where the reference is no statistics,
    features do not fit it, or a cell has other images than the rest of its set.
    """
    digest = digested(results, resamples=resamples)
    drawn = figures(digest)
    texts = {
        "html": ("report.html", page_text(digest, drawn)),
        "csv": ("results.csv", csv_text(digest)),
        "json": ("results.json", json_text(digest)),
        "tex": ("table.tex", latex_text(digest)),
    }
    for name, text in texts.values():
        with whole_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for name, content in figure_files(drawn).items():
        with whole_file(out / FIGURES / name) as partial:
            partial.write_bytes(content)
    paths = {kind: str(out / name) for kind, (name, _) in texts.items()}
    return paths | ({"figures": str(out / FIGURES)} if drawn else {})
