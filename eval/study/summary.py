"""A study's summary in words."""

from collections.abc import Collection
from typing import Any

from eval.study.grid import in_words
from eval.study.results import Axes, CellResult, Results

BEST = 3  # cells of each image set
_SHOWN = {  # score: its head in the table
    "kid": "1000 KID",
    "frechet": "Frechet",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "judge_agreement": "agrees",
    "distance": "moved",
    "eps_taken": "eps found",
}


def failures(results: Results, classifiers: Collection[str], cells: Collection[Axes]) -> list[dict[str, str]]:
    """What of these failed, or could not be tried: its label and its line."""
    measured = [one for one in results.classifiers if one.name in classifiers and not one.pending]
    refined = [cell for cell in results.cells if cell.axes in cells]
    return [
        *({"job": f"classifier {one.name}", "error": one.error} for one in measured if one.error),
        *({"job": in_words(cell.axes), "error": cell.error} for cell in refined if cell.error),
    ]


def best_cells(results: Results) -> list[dict[str, Any]]:
    """Of each image set as it came and the refined cells of smallest distance, ready for JSON."""
    rows = []
    for images in dict.fromkeys(cell.axes.drawn for cell in results.cells):
        done = [cell for cell in results.cells if cell.axes.drawn == images and not cell.error]
        raw = [cell for cell in done if cell.axes.is_raw]
        refined = sorted((cell for cell in done if not cell.axes.is_raw), key=_distance)
        rows += [_row(cell) for cell in [*raw, *refined[:BEST]]]
    return rows


def _distance(cell: CellResult) -> float:
    """By which cells are ordered: the KID where it is the one to go by."""
    return cell.scores.get("kid", cell.scores["frechet"])


def format_study(summary: dict[str, Any]) -> str:
    """The best cells as a table, how many are done, the reports, and what failed."""
    lines = _table(summary["best"])
    share = summary["share"]
    if share is not None:
        lines.append(
            f"share {share['i']} of {share['n']}: {share['jobs']} jobs have ended; --merge reports on all shares"
        )
    done = f"{summary['num_done']} of {summary['num_cells']} cells in {summary['out']}"
    missing = f"; {summary['missing']} jobs are not done yet" if summary["missing"] else ""
    lines.append(f"{done}{missing}; {summary['wall_s']} s")
    lines += [f"{images}: {sentences}" for images, sentences in summary["answer"].items()]
    lines += [f"note: {caution}" for caution in summary["cautions"]]
    lines += [f"{name}: {path}" for name, path in summary["reports"].items()]
    if summary["failed"]:
        lines += [f"{len(summary['failed'])} failed; the same command tries them again:"]
        lines += [f"  {failed['job']}: {failed['error']}" for failed in summary["failed"]]
    return "\n".join(lines)


def _row(cell: CellResult) -> dict[str, Any]:
    return {
        "cell": in_words(cell.axes),
        "n": cell.num_images,
        **{name: cell.scores[name] for name in _SHOWN if name in cell.scores},
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    shown = [name for name in _SHOWN if any(name in row for row in rows)]
    width = max(len(row["cell"]) for row in rows)
    lines = [" " * width + "".join(f"{_SHOWN[name]:>10}" for name in shown)]
    for row in rows:
        numbers = "".join(_number(name, row) for name in shown)
        lines.append(f"{row['cell']:<{width}}{numbers}")
    return lines


def _number(name: str, row: dict[str, Any]) -> str:
    if name not in row:
        return " " * 10
    return f"{1000 * row[name]:>10.4g}" if name == "kid" else f"{row[name]:>10.3f}"
