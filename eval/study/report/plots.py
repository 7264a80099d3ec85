"""The drawings: scores against an axis of the grid, distance against robust accuracy, precision against recall."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.study.report.charts import FAINT, INK, Drawing, Style, drawn, panel
from eval.study.report.compare import Estimate
from eval.study.report.digest import Row, SetDigest
from eval.study.report.words import axis_words, number_words, places
from eval.study.results import Accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot

NUMERIC = ("eps", "steps")
_CATEGORY_CHARS = 40  # that fit below each other's places without turning


@dataclass(frozen=True)
class Score:
    """What a plot shows of a cell: a number, times a factor, in words; arrow: which way is better."""

    words: str
    of: Callable[[Row], Estimate | None]
    factor: float = 1
    arrow: str = "↑"
    from_raw: bool = False  # a difference: 0 for the raw images

    @property
    def label(self) -> str:
        """For an axis: capitalised, with the arrow that says which way is better."""
        return f"{self.words[0].upper()}{self.words[1:]} {self.arrow}"


@dataclass(frozen=True)
class Series:
    """Cells that are joined in a plot, and how they look."""

    label: str
    look: Style
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Scale:
    """The x axis: numbers, or one place for each category (their words)."""

    axis: str
    label: str
    categories: tuple[str, ...]
    span: float

    @classmethod
    def of(cls, axis: str, label: str, rows: Sequence[Row]) -> "Scale":
        """The scale on which the values of `axis` of all the rows have a place."""
        if axis in NUMERIC:
            values = [number(row, axis) for row in rows]
            return cls(axis, label, (), max(values, default=1) - min([0, *values]) or 1)
        return cls(axis, label, tuple(dict.fromkeys(axis_words(row.cell.axes, axis) for row in rows)), 0)

    def place(self, row: Row) -> float:
        """Where a row stands: its number, or the index of its category."""
        if self.categories:
            return float(self.categories.index(axis_words(row.cell.axes, self.axis)))
        return number(row, self.axis)

    def shift(self, i: int, n: int) -> float:
        """How far the i-th of n cells of the same place stands from it, so that their intervals do not overlap."""
        step = min(0.08, 0.8 / n) if self.categories else min(0.012, 0.08 / n) * self.span
        return (i - (n - 1) / 2) * step

    def draw(self, plot: "Plot") -> None:
        """Labels the x axis of a plot, and names the categories on it."""
        plot.set_xlabel(self.label)
        if self.categories:
            plot.set_xticks(range(len(self.categories)), self.categories)
            if sum(map(len, self.categories)) > _CATEGORY_CHARS:
                plot.tick_params("x", labelrotation=20)
                plot.figure.subplots_adjust(bottom=0.28)
                plot.set_xticklabels(self.categories, ha="right")
            plot.set_xlim(-0.5, len(self.categories) - 0.5)


def number(row: Row, axis: str) -> float:
    """Where a cell stands on one of NUMERIC; one whose eps was searched for, at what was found."""
    return float(row.cell.eps if axis == "eps" else getattr(row.cell.axes, axis))


def against_axis(one: SetDigest, series: Sequence[Series], scale: Scale, score: Score, name: str) -> Drawing:
    """A score of every series with its intervals; numbers are joined, and those of eps begin at the raw images."""
    raw = _raw(one, score)
    crowd: dict[float, list[Row]] = {}  # who shares a place
    for row in (row for one_series in series for row in one_series.rows if score.of(row) is not None):
        crowd.setdefault(scale.place(row), []).append(row)

    def x_of(row: Row) -> float:
        there = crowd[scale.place(row)]
        return scale.place(row) + scale.shift(there.index(row), len(there))

    with panel() as (figure, plot):
        if raw is not None:
            _raw_line(plot, raw, score.factor)
        for one_series in series:
            points = [(x_of(row), estimate, row) for row in one_series.rows if (estimate := score.of(row)) is not None]
            points.sort(key=lambda point: point[0])
            if not scale.categories:
                start = [(0.0, raw.value)] if raw is not None and scale.axis == "eps" and points else []
                line = start + [(x, estimate.value) for x, estimate, _ in points]
                _line(plot, [(x, y * score.factor) for x, y in line], one_series.look)
            for x, estimate, row in points:
                _bar(plot, (x, estimate.value * score.factor), one_series.look, y=_scaled(estimate, score.factor))
                _point(plot, (x, estimate.value * score.factor), one_series.look, row)
        scale.draw(plot)
        plot.set_ylabel(score.label)
        words = f"{score.words} against {scale.axis}, {one.name}; the numbers are in the table"
        return drawn(figure, name, words, _titles(one, score), _legend(series))


def against_robustness(
    one: SetDigest, best: Sequence[tuple[Series, Accuracy]], score: Score, label: str, name: str
) -> Drawing:
    """Of each classifier the cell of the lowest score, with both intervals; its other cells pale."""
    raw = _raw(one, score)
    with panel() as (figure, plot):
        if raw is not None:
            _raw_line(plot, raw, score.factor)
        for series, accuracy in best:
            x, low, high = (100 * share for share in (accuracy.value, *accuracy.interval))
            points = [(estimate, row) for row in series.rows if (estimate := score.of(row)) is not None]
            points.sort(key=lambda point: point[0].value)
            for estimate, row in points[1:]:
                _point(plot, (x, estimate.value), series.look, row, size=3.5, alpha=0.45)
            for estimate, row in points[:1]:
                _bar(plot, (x, estimate.value), series.look, x=(low, high), y=estimate.interval)
                _point(plot, (x, estimate.value), series.look, row, size=8)
        plot.set_xlabel(label)
        plot.set_ylabel(score.label)
        words = f"{score.words} against {label}, {one.name}"
        return drawn(figure, name, words, _titles(one, score), _legend([series for series, _ in best]))


def precision_against_recall(one: SetDigest, series: Sequence[Series], name: str) -> Drawing:
    """Every cell; those of a series are joined from small eps to large, and grow with it."""
    with panel() as (figure, plot):
        raw = _precision_recall(one.raw) if one.raw else None
        for one_series in series:
            rows = sorted(one_series.rows, key=lambda row: row.cell.eps)
            points = [(point, row) for row in rows if (point := _precision_recall(row)) is not None]
            if points:
                _line(plot, [*([raw] if raw else []), *(point for point, _ in points)], one_series.look, alpha=0.6)
            for i, (point, row) in enumerate(points):
                _point(plot, point, one_series.look, row, size=4 + 6 * (i + 1) / len(points))
        if raw and one.raw:
            _point(plot, raw, Style(INK, "*", "-"), one.raw, size=12)
            plot.annotate("raw", raw, (7, 5), textcoords="offset points")
        plot.margins(0.12)
        plot.set_xlabel("Recall ↑")
        plot.set_ylabel("Precision ↑")
        titles = _titles(one, Score("precision", _precision))
        return drawn(figure, name, f"precision against recall, {one.name}", titles, _legend(series))


def _legend(series: Sequence[Series]) -> list[tuple[Style, str]]:
    return [(one.look, one.label) for one in series]


def _raw(one: SetDigest, score: Score) -> Estimate | None:
    """Where the raw images stand."""
    if one.raw is None:
        return None
    return Estimate(0.0, None) if score.from_raw else score.of(one.raw)


def _precision(row: Row) -> Estimate | None:
    return row.score("precision")


def _precision_recall(row: Row) -> tuple[float, float] | None:
    """As (recall, precision), the plot's x and y."""
    precision, recall = row.score("precision"), row.score("recall")
    return None if precision is None or recall is None else (recall.value, precision.value)


def _raw_line(plot: "Plot", raw: Estimate, factor: float) -> None:
    y = raw.value * factor
    plot.axhline(y, color=FAINT, linewidth=1.2, zorder=1)
    if raw.interval is not None:
        plot.axhspan(*(end * factor for end in raw.interval), color=FAINT, alpha=0.18, linewidth=0, zorder=0)
    plot.annotate("raw", (1, y), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center")


def _line(plot: "Plot", points: Sequence[tuple[float, float]], look: Style, alpha: float = 1) -> None:
    plot.plot(*zip(*points, strict=True), color=look.colour, linestyle=look.line, linewidth=1.4, alpha=alpha)


def _bar(
    plot: "Plot",
    at: tuple[float, float],
    look: Style,
    *,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
) -> None:
    """The interval of either coordinate, as far as there is one."""
    if x is not None:
        plot.hlines(at[1], *x, color=look.colour, linewidth=1.2)
    if y is not None:
        plot.vlines(at[0], *y, color=look.colour, linewidth=1.2)


def _point(plot: "Plot", at: tuple[float, float], look: Style, row: Row, *, size: float = 6, alpha: float = 1) -> None:
    """A marker that leads to the cell's details."""
    plot.plot(
        [at[0]],
        [at[1]],
        color=look.colour,
        marker=look.marker,
        linestyle="none",
        markersize=size,
        alpha=alpha,
        url=f"#{row.anchor}",
    )


def _scaled(estimate: Estimate, factor: float) -> tuple[float, float] | None:
    return estimate.interval and (estimate.interval[0] * factor, estimate.interval[1] * factor)


def _titles(one: SetDigest, score: Score) -> dict[str, str]:
    """Of the links to cells: what the cell is, and its number."""
    decimals = places(score.of(row) for row in one.rows)
    return {f"#{row.anchor}": f"{row.label}: {score.words} {number_words(score.of(row), decimals)}" for row in one.rows}
