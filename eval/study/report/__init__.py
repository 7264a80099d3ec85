"""The report of a study: a self-contained page, the same numbers as CSV and JSON, and a LaTeX table."""

from pathlib import Path

from eval.study.report.compare import RESAMPLES
from eval.study.report.digest import digested
from eval.study.report.latex import latex_text
from eval.study.report.page import page_text
from eval.study.report.tables import csv_text, json_text
from eval.study.results import Results
from robust_models.runtime.files import whole_file

__all__ = ["write_report"]


def write_report(results: Results, out: Path, *, resamples: int = RESAMPLES) -> dict[str, str]:
    """Writes out/report.html, results.csv, results.json and table.tex, each whole; returns kind -> path.

    Takes a study as far as it got: failed and missing cells are listed. UserError where the reference is no statistics,
    features do not fit it, or a cell has other images than the rest of its set.
    """
    digest = digested(results, resamples=resamples)
    texts = {
        "html": ("report.html", page_text(digest)),
        "csv": ("results.csv", csv_text(digest)),
        "json": ("results.json", json_text(digest)),
        "tex": ("table.tex", latex_text(digest)),
    }
    for name, text in texts.values():
        with whole_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return {kind: str(out / name) for kind, (name, _) in texts.items()}
