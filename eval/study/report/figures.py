"""Which plots a study has: distance against each axis and against robust accuracy, other scores, precision, recall."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from eval.study.report.charts import Drawing, Style, style, swatch
from eval.study.report.digest import Digest, Row, SetDigest, accuracy_at, radii
from eval.study.report.plots import Scale, Score, Series, against_axis, against_robustness, precision_against_recall
from eval.study.report.words import cell_words, eps_words, norm_words
from eval.study.results import Accuracy

OTHER_SCORES = (
    Score("inception score by the judge", lambda row: row.score("inception_score")),
    Score("precision", lambda row: row.score("precision")),
    Score("recall", lambda row: row.score("recall")),
    Score("judge agrees, %", lambda row: row.score("judge_agreement"), factor=100),
)
_AXIS_LABELS = {"eps": "eps (pixels in [0,1])", "steps": "steps"}


def _distance(digest: Digest) -> Score:
    return Score(digest.measure, lambda row: row.distance, arrow="↓")


def _change(digest: Digest) -> Score:
    return Score(f"{digest.measure} less raw", lambda row: row.from_raw, arrow="↓", from_raw=True)


@dataclass(frozen=True)
class Panel:
    """One drawing under its title."""

    title: str
    drawing: Drawing


@dataclass(frozen=True)
class Figure:
    """Panels that share a caption and a legend of (swatch, words)."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[Markup, str], ...]
    anchor: str = ""


def figures(digest: Digest) -> tuple[Figure, ...]:
    """Those that the results have something for, in the order of the page."""
    found = [_against_axis(digest, axis) for axis in _axes_to_plot(digest)]
    found += [_against_robustness(digest), _other_scores(digest), _precision_recall(digest)]
    drawn = [figure for figure in found if figure is not None and figure.panels]
    return tuple(replace(figure, anchor=f"figure-{i}") for i, figure in enumerate(drawn, 1))


def figure_files(drawn: Sequence[Figure]) -> dict[str, bytes]:
    """{file name: content} of every panel, as SVG and as PDF."""
    files = {}
    for figure in drawn:
        for panel in figure.panels:
            title = f"{figure.title} {panel.title}".lower().replace("é", "e").replace("∞", "inf")
            words = re.sub(r"[^a-z0-9]+", "-", title).strip("-")
            name = words if f"{words}.svg" not in files else f"{words}-{len(files)}"
            files |= {f"{name}.{kind}": content for kind, content in panel.drawing.files().items()}
    return files


def _axes_to_plot(digest: Digest) -> list[str]:
    """The axes of interest that vary, and eps if it does; classifiers where there would be no plot else."""
    several = [
        axis
        for axis in dict.fromkeys((*digest.results.vary, "eps", "classifier"))
        if axis not in ("images", "seed") and len({getattr(row.cell.axes, axis) for row in _refined(digest)}) > 1
    ]
    return [axis for axis in several if axis != "classifier"] or several


def _against_axis(digest: Digest, axis: str) -> Figure:
    panels = []
    for one, norm in _facets(digest, axis):
        rows = [row for row in one.refined if norm in (None, row.cell.axes.norm)]
        scale = Scale.of(axis, _AXIS_LABELS.get(axis, axis), rows)
        title = one.name if norm is None else f"{one.name}, {norm_words(norm)}"
        series = _series(digest, rows, without=axis)
        for score in (_distance(digest), _change(digest)):
            if any(score.of(row) for row in rows):
                drawing = against_axis(one, series, scale, score, f"{axis}-{len(panels)}")
                panels.append(Panel(title + (", paired" if score.from_raw else ""), drawing))
    start = ", where every curve begins" if axis == "eps" else ""
    caption = (
        f"Lower is better. Grey: the raw images{start}. Bars: 95 % intervals of the distance; where paired, of its "
        "difference from that of the same images raw. A point leads to its cell."
    )
    return Figure(f"{digest.measure} against {axis}", caption, tuple(panels), _legend(digest, axis))


def _facets(digest: Digest, axis: str) -> Iterable[tuple[SetDigest, str | None]]:
    """An image set each; one and a norm where radii of several norms would stand on one scale."""
    for one in digest.sets:
        norms = sorted({row.cell.axes.norm for row in one.refined})
        for norm in norms if axis == "eps" and "norm" in digest.axes else [None][: len(norms)]:
            yield one, norm


def _against_robustness(digest: Digest) -> Figure | None:
    """None where fewer than two classifiers have an accuracy at the same radius."""
    radius = _most_spread_radius(digest)
    if radius is None:
        return None
    label = f"Robust accuracy, % ({norm_words(radius[0])}, eps {eps_words(radius[1], radius[0])}) ↑"
    panels = []
    for one in digest.sets:
        best: list[tuple[Series, Accuracy]] = []
        for i, name in enumerate(digest.classifiers):
            rows = tuple(row for row in one.refined if row.cell.axes.classifier == name)
            accuracy = accuracy_at(digest.classifier(name), *radius)
            if rows and accuracy is not None:
                best.append((Series(name, style(i), rows), accuracy))
        if best:
            score = (_change if any(row.from_raw for row in one.refined) else _distance)(digest)
            drawing = against_robustness(one, best, score, label, f"robustness-{len(panels)}")
            panels.append(Panel(one.name, drawing))
    legend = [(swatch(style(i)), name) for i, name in enumerate(digest.classifiers)]
    caption = (
        "Large: each classifier's cell of the lowest distance, with 95 % intervals; small: its other cells. "
        "The radius is the one at which the classifiers differ most. Grey: the raw images."
    )
    return Figure(f"{digest.measure} against robust accuracy", caption, tuple(panels), tuple(legend))


def _most_spread_radius(digest: Digest) -> tuple[str, float] | None:
    """(norm, eps) that most classifiers were attacked at; of such, the one at which they differ most."""
    used = {row.cell.axes.classifier for row in _refined(digest)}

    def spread(radius: tuple[str, float]) -> tuple[int, float]:
        found = [a.value for one in digest.results.classifiers if (a := accuracy_at(one, *radius)) and one.name in used]
        return len(found), max(found, default=0) - min(found, default=0)

    most = max(radii(digest), key=spread, default=None)
    return most if most is not None and spread(most)[0] > 1 else None


def _other_scores(digest: Digest) -> Figure | None:
    """None where eps does not vary within one norm."""
    if "eps" not in _axes_to_plot(digest) or "norm" in digest.axes:
        return None
    panels = []
    for score in OTHER_SCORES:
        for one in digest.sets:
            rows = [row for row in one.refined if score.of(row) is not None]
            if rows:
                scale = Scale.of("eps", _AXIS_LABELS["eps"], rows)
                series = _series(digest, rows, without="eps")
                drawing = against_axis(one, series, scale, score, f"score-{len(panels)}")
                panels.append(Panel(f"{one.name}: {score.words}", drawing))
    caption = (
        "Higher is better, but the inception score and the judge's agreement rise with confidence and may do so "
        "while the images get worse. Grey: the raw images. Bars, where there are any: 95 % intervals."
    )
    return Figure("Other scores against eps", caption, tuple(panels), _legend(digest, "eps"))


def _precision_recall(digest: Digest) -> Figure:
    panels = []
    for one in digest.sets:
        rows = [row for row in one.refined if row.score("precision") and row.score("recall")]
        if rows:
            drawing = precision_against_recall(one, _series(digest, rows, without="eps"), f"pr-{len(panels)}")
            panels.append(Panel(one.name, drawing))
    caption = "Precision: how many images look real; recall: how much of the real is there. Markers grow with eps."
    return Figure("Precision against recall", caption, tuple(panels), _legend(digest, "eps"))


def _series(digest: Digest, rows: Sequence[Row], without: str) -> list[Series]:
    """The rows by all axes but one."""
    looks = _looks(digest, without)
    others = [axis for axis in digest.axes if axis != without]
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(cell_words(row.cell.axes, others), []).append(row)
    return [Series(label, look, tuple(grouped[label])) for label, look in looks.items() if label in grouped]


def _looks(digest: Digest, without: str) -> dict[str, Style]:
    """Of every series of the study: the classifier has the colour, the other axes marker and line."""
    others = [axis for axis in digest.axes if axis != without]
    looks, variants = {}, {}
    for row in _refined(digest):
        axes = row.cell.axes
        variant = variants.setdefault(tuple(getattr(axes, axis) for axis in others), len(variants))
        looks[cell_words(axes, others)] = style(digest.classifiers.index(str(axes.classifier)), variant)
    return looks


def _legend(digest: Digest, without: str) -> tuple[tuple[Markup, str], ...]:
    return tuple((swatch(look), label) for label, look in _looks(digest, without).items())


def _refined(digest: Digest) -> list[Row]:
    return [row for one in digest.sets for row in one.refined]
