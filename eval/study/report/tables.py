"""The tables, once: columns of text that the page and LaTeX share, and flat records for CSV and JSON."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from eval.study.report.cautions import cautions
from eval.study.report.compare import Difference, Estimate
from eval.study.report.digest import BEST, MEASURES, TIED, Digest, Row, accuracy_at, radii
from eval.study.report.summary import answer, standing, summary
from eval.study.report.words import axis_words, eps_words, interval_words, judge_words, norm_words, places, value_words
from eval.study.results import ClassifierResult
from robust_models.runtime.config import as_json

MARKS = {BEST: "★", TIED: "≈", "": ""}
_AXIS_HEADINGS = {
    "norm": "Norm",
    "eps": "eps",
    "steps": "Steps",
    "targets": "Targets",
    "loss": "Loss",
    "stop": "Stop",
}
_SCORES = {  # name: heading, factor
    "inception_score": ("Judge's IS\N{NO-BREAK SPACE}↑", 1),
    "precision": ("Precision\N{NO-BREAK SPACE}↑", 1),
    "recall": ("Recall\N{NO-BREAK SPACE}↑", 1),
    "judge_agreement": ("Judge agrees, %\N{NO-BREAK SPACE}↑", 100),
    "target_agreement": ("Target met, %", 100),
    "distance": ("Moved", 1),
}


@dataclass(frozen=True)
class Entry:
    """One number of a table, its interval beneath; sign: what a difference means, "lower", "higher" or ""."""

    value: str
    interval: str = ""
    sign: str = ""
    contested: bool = False  # another judge sees another change


@dataclass(frozen=True)
class Table:
    """Headings of the number columns, and their entries for every row."""

    axes: tuple[str, ...]  # headings of the axes
    headings: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Entry, ...]], ...]  # (axes' values, entries), one for each row


def cells_table(digest: Digest, rows: Sequence[Row]) -> Table:
    """Of these cells; a failed one has no entries. Decimals fit the whole study, so that tables can be compared."""
    less_raw = _entries(digest, rows, lambda row: row.from_raw, signed=True)
    columns: list[tuple[str, list[Entry]]] = [
        (f"{digest.measure}\N{NO-BREAK SPACE}↓", _entries(digest, rows, lambda row: row.distance)),
        ("Less raw", [replace(entry, contested=row.contested) for entry, row in zip(less_raw, rows, strict=True)]),
    ]
    for i, judge in enumerate(digest.results.others):
        opinions = _entries(digest, rows, lambda row, i=i: row.opinions[i] if row.opinions else None, signed=True)
        measure = digest.other_measures[i]
        less_raw_words = "Less raw" if measure == digest.measure else f"{measure} less raw"
        columns.append((f"{less_raw_words} by {judge_words(judge.judge)}", opinions))
    for name, (heading, factor) in _SCORES.items():
        if any(row.score(name) for row in digest.rows):
            columns.append((heading, _entries(digest, rows, lambda row, name=name: row.score(name), factor=factor)))
    if any(row.cell.axes.eps == "auto" for row in digest.rows):
        columns.append(("eps found", [_found(row) for row in rows]))
    axes = [
        tuple("" if row.cell.axes.is_raw else axis_words(row.cell.axes, axis) for axis in digest.axes) for row in rows
    ]
    entries = list(zip(*(column for _, column in columns), strict=True))
    return Table(
        tuple(_AXIS_HEADINGS[axis] for axis in digest.axes),
        tuple(heading for heading, _ in columns),
        tuple((axes[i], () if row.cell.error else entries[i]) for i, row in enumerate(rows)),
    )


def classifiers_table(digest: Digest) -> Table:
    """What each classifier withstands, in percent; a failed one has no entries."""
    at = [("", 0.0), *radii(digest)]
    headings = ["Clean, %"] + [f"{norm_words(norm)} {eps_words(eps, norm)}, %" for norm, eps in at[1:]]
    rows = []
    for name in digest.classifiers:
        one = digest.classifier(name)
        rows.append(((), () if one is None or one.error else tuple(_accuracy(one, *radius) for radius in at)))
    return Table((), tuple(headings), tuple(rows))


def csv_text(digest: Digest) -> str:
    """One line per cell: its axes, scores, intervals, mark, what it came from, and the one line of a failed one."""
    records = [_record(digest, row) for row in digest.rows]
    columns = list(dict.fromkeys(name for record in records for name in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def json_text(digest: Digest) -> str:
    """Everything that the page shows; numbers that are not finite are null."""
    results = digest.results
    found = {
        "title": results.title,
        "question": results.question,
        "standing": standing(digest),
        "answer": answer(digest),
        "summary": summary(digest),
        "cautions": cautions(digest),
        "judge": results.judge,
        "other_judges": [judge.judge for judge in results.others],
        "reference": results.reference_words,
        "command": results.command,
        "vary": results.vary,
        "missing": results.missing,
        "resamples": digest.resamples,
        "classifiers": [_without_panel(one) for one in results.classifiers],
        "cells": [
            _record(digest, row) | {"provenance": asdict(row.cell.provenance) if row.cell.provenance else None}
            for row in digest.rows
        ],
    }
    return as_json(found, indent=1, ensure_ascii=False, default=str) + "\n"


def _record(digest: Digest, row: Row) -> dict[str, Any]:
    """A cell, flat."""
    cell, provenance = row.cell, row.cell.provenance
    record: dict[str, Any] = {"cell": row.anchor, **asdict(cell.axes), "num_images": cell.num_images}
    measure = _name_of(digest.measure)
    record |= _flat(measure, row.distance) | _flat("less_raw", row.from_raw) | {"mark": row.mark}
    for i, (words, distance) in enumerate(zip(digest.other_measures, row.elsewhere, strict=True), 2):
        record |= _flat(f"{_name_of(words)}_{i}", distance)
    for i, opinion in enumerate(row.opinions, 2):
        record |= _flat(f"less_raw_{i}", opinion)
    if row.opinions:
        record["contested"] = row.contested
    for name in cell.scores:
        if name != measure:
            record |= _flat(name, row.score(name))
    if provenance is not None:
        inputs = {f"sha256_{name}": digest for name, digest in provenance.inputs.items()}
        record |= {"key": provenance.key, **inputs, "wall_s": provenance.wall_s}
    return record | ({} if cell.error is None else {"error": cell.error})


def _name_of(measure: str) -> str:
    return "kid" if measure == MEASURES["kid"] else "frechet"


def _flat(name: str, number: Estimate | None) -> dict[str, float]:
    if number is None:
        return {}
    ends = {} if number.interval is None else dict(zip((f"{name}_low", f"{name}_high"), number.interval, strict=True))
    return {name: number.value, **ends}


def _found(row: Row) -> Entry:
    """The radius that auto found."""
    is_auto = row.cell.axes.eps == "auto" and not row.cell.error
    return Entry(eps_words(row.cell.eps, row.cell.axes.norm) if is_auto else "")


def _accuracy(one: ClassifierResult, norm: str, eps: float) -> Entry:
    found = accuracy_at(one, norm, eps)
    percent = None if found is None else _times(Estimate(found.value, found.interval), 100)
    return _entry(percent, min(1, places([percent], otherwise=1)))


def _entries(
    digest: Digest,
    rows: Sequence[Row],
    number: Callable[[Row], Estimate | None],
    *,
    factor: float = 1,
    signed: bool = False,
) -> list[Entry]:
    decimals = places(_times(number(row), factor) for row in digest.rows)
    return [_entry(_times(number(row), factor), decimals, signed=signed) for row in rows]


def _entry(number: Estimate | None, decimals: int, *, signed: bool = False) -> Entry:
    sign = ""
    if isinstance(number, Difference) and number.is_significant:
        sign = "lower" if number.is_lower else "higher"
    return Entry(value_words(number, decimals, signed=signed), interval_words(number, decimals, signed=signed), sign)


def _times(number: Estimate | None, factor: float) -> Estimate | None:
    if number is None or factor == 1:
        return number
    ends = number.interval and (number.interval[0] * factor, number.interval[1] * factor)
    return replace(number, value=number.value * factor, interval=ends)


def _without_panel(classifier: ClassifierResult) -> dict[str, Any]:
    """All but a path that means nothing elsewhere."""
    return {name: value for name, value in asdict(classifier).items() if name != "panel"}
