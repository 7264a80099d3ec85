"""The page: one HTML file that needs nothing but itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.study.report.cautions import cautions
from eval.study.report.charts import style, swatch
from eval.study.report.digest import Digest, Row
from eval.study.report.figures import Figure, figures
from eval.study.report.pictures import before_after, detail_strips, gradients
from eval.study.report.summary import answer, standing, summary
from eval.study.report.tables import MARKS, cells_table, classifiers_table
from eval.study.report.words import AXES, axis_words, counted, listed
from eval.study.results import Provenance


def page_text(digest: Digest, drawn: Sequence[Figure] | None = None) -> str:
    """The HTML of the whole report. drawn: its figures, where they are at hand."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        results=digest.results,
        digest=digest,
        standing=standing(digest),
        answer=answer(digest),
        summary=summary(digest),
        cautions=cautions(digest),
        failures=failures(digest),
        settings=settings(digest),
        tables=[(one, cells_table(digest, one.rows)) for one in digest.sets],
        set_anchors={one.name: one.anchor for one in digest.sets},
        classifiers=classifiers_table(digest),
        figures=figures(digest) if drawn is None else drawn,
        grids=before_after(digest),
        gradients=gradients(digest),
        strips=detail_strips(digest),
        swatches={name: swatch(style(i)) for i, name in enumerate(digest.classifiers)},
        marks=MARKS,
        pretty=lambda tree: json.dumps(tree, indent=2, ensure_ascii=False, default=str),
    )


@dataclass(frozen=True)
class Failure:
    """A cell or classifier without a result, and why."""

    what: str
    anchor: str
    error: str
    pending: bool = False  # not tried yet


def failures(digest: Digest) -> list[Failure]:
    """Cells and classifiers that failed or wait, with their one line."""
    found = [
        Failure(f"{row.cell.axes.drawn}, {row.label}", row.anchor, row.cell.error)
        for row in digest.rows
        if row.cell.error is not None
    ]
    found += [
        Failure(one.name, digest.anchor(one.name), one.error, one.pending)
        for one in digest.results.classifiers
        if one.error is not None
    ]
    return found


def settings(digest: Digest) -> list[tuple[str, str]]:
    """What all numbers of the page have in common, as (name, words)."""
    results = digest.results
    refined = [row for row in digest.rows if not row.cell.axes.is_raw]
    constants = [axis for axis in AXES if axis not in digest.axes]
    found = [
        ("Images", "; ".join(f"{one.name}, {_num_images(one.rows)}" for one in digest.sets)),
        (
            "Judge" if not results.others else "Judges",
            "; ".join([results.judge, *(one.judge for one in results.others)]),
        ),
        ("Reference", results.reference_words),
        ("Refinement", ", ".join(_constant(refined[0], axis) for axis in constants) if refined else ""),
        ("Machine", "; ".join(sorted({provenance.machine for provenance in _provenances(digest)}))),
        ("Versions", _versions(_provenances(digest))),
        ("Command", results.command),
    ]
    return [(name, words) for name, words in found if words]


def _constant(row: Row, axis: str) -> str:
    value = axis_words(row.cell.axes, axis)
    return counted(int(value), "step") if axis == "steps" else f"{axis} {value}"


def _num_images(rows: Sequence[Row]) -> str:
    found = sorted({row.cell.num_images for row in rows if row.cell.error is None and row.cell.num_images})
    return f"N = {listed([f'{n:,}' for n in found])}" if found else "none scored"


def _provenances(digest: Digest) -> list[Provenance]:
    found = [row.cell.provenance for row in digest.rows] + [one.provenance for one in digest.results.classifiers]
    return [provenance for provenance in found if provenance is not None]


def _versions(provenances: Sequence[Provenance]) -> str:
    found: dict[str, set[str]] = {}
    for provenance in provenances:
        for name, version in provenance.versions.items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items())
