"""How numbers, axes and cells are called on the page."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from eval.study.report.compare import Estimate
from eval.study.results import Axes, CellResult

AXES = (
    "norm",
    "eps",
    "steps",
    "targets",
    "loss",
    "stop",
)  # of a refined cell, besides its images (with the seed that drew them) and classifier
NORMS = {"l1": "L1", "l2": "L2", "linf": "L∞"}
NONE = "\N{EN DASH}"  # where there is no number
MINUS = "\N{MINUS SIGN}"


def varied(cells: Iterable[CellResult]) -> tuple[str, ...]:
    """The axes that take more than one value among refined cells."""
    refined = [cell.axes for cell in cells if not cell.axes.is_raw]
    return tuple(name for name in AXES if len({getattr(axes, name) for axes in refined}) > 1)


def axis_words(axes: Axes, name: str) -> str:
    """The value of one axis: "8/255", "L2", "pseudo"."""
    if name == "eps":
        return eps_words(axes.eps, axes.norm)
    value = getattr(axes, name)
    return norm_words(value) if name == "norm" else str(value)


def norm_words(norm: str) -> str:
    """ "L2" for "l2"; a norm without a usual name stays as it is."""
    return NORMS.get(norm, norm)


def eps_words(eps: float | Literal["auto"], norm: str) -> str:
    """In 255ths where that is how the norm's radii are quoted."""
    if eps == "auto":
        return "auto"
    levels = eps * 255
    if norm == "linf" and eps > 0 and abs(levels - round(levels)) < 1e-6 * 255:
        return f"{round(levels)}/255"
    return f"{eps:.6g}"


def cell_words(axes: Axes, names: Sequence[str]) -> str:
    """Which cell of its image set: the classifier and the axes `names`, "robust, eps 1, 7 steps"; or "raw"."""
    if axes.is_raw:
        return "raw"
    return ", ".join([str(axes.classifier), *(_with_value(axes, name) for name in names)])


def judge_words(judge: str) -> str:
    """A judge's name; of a classifier's file, the file's."""
    return judge.rpartition("/")[2]


def listed(words: Sequence[str], most: int = 4) -> str:
    """ "a, b and c"; "a, b, c and 5 more" beyond `most`."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    between = "; " if any(", " in re.sub(r"\[.*?\]", "", word) for word in words) else ", "  # but for intervals
    return words[0] if len(words) == 1 else f"{between.join(words[:-1])}{between.rstrip(', ')} and {words[-1]}"


def counted(n: int, one: str, many: str = "") -> str:
    """ "1 cell", "3 cells"."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def places(numbers: Iterable[Estimate | None], otherwise: int = 3) -> int:
    """Decimals that show two digits of the median half width of the intervals; `otherwise` where there are none."""
    widths = sorted(
        (number.interval[1] - number.interval[0]) / 2 for number in numbers if number is not None and number.interval
    )
    width = widths[len(widths) // 2] if widths else 0
    return max(0, min(6, 1 - math.floor(math.log10(width)))) if width > 0 else otherwise


def number_words(number: Estimate | None, decimals: int, *, signed: bool = False) -> str:
    """ "41.2 [40.1, 42.5]", or "41.2" without an interval."""
    if number is None:
        return NONE
    interval = interval_words(number, decimals, signed=signed)
    return f"{value_words(number, decimals, signed=signed)} {interval}".rstrip()


def value_words(number: Estimate | None, decimals: int, *, signed: bool = False) -> str:
    """ "41.2", with its sign where `signed`; a dash for None."""
    return NONE if number is None else _decimal(number.value, decimals, signed)


def interval_words(number: Estimate | None, decimals: int, *, signed: bool = False) -> str:
    """ "[40.1, 42.5]"; "" where there is no interval."""
    if number is None or number.interval is None:
        return ""
    low, high = (_decimal(end, decimals, signed) for end in number.interval)
    return f"[{low}, {high}]"


def _decimal(value: float, decimals: int, signed: bool) -> str:
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)


def _with_value(axes: Axes, name: str) -> str:
    value = axis_words(axes, name)
    if name == "steps":
        return counted(axes.steps, "step")
    return value if name in ("norm", "targets", "loss") else f"{name} {value}"
