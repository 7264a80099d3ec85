"""Computes all values of the report once, by image set: names, intervals and marks of the cells."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from eval.robust.stages import binomial_interval
from eval.study.report.compare import RESAMPLES, Comparison, Difference, Estimate
from eval.study.report.words import cell_words, varied
from eval.study.results import Accuracy, CellResult, ClassifierResult, JudgedBy, Results
from robust_models.errors import UserError
from robust_models.metrics import FrechetReference, read_statistics
from robust_models.metrics.kernel_resampled import KernelReference, SetReference, measure_of, reference_for

BEST, TIED = "best", "tied"
MEASURES = {"frechet": "Fréchet distance", "kid": "KID"}
_SHARES = ("judge_agreement", "target_agreement")  # of the set's images: binomial


@dataclass(frozen=True)
class Row:
    """A cell as the report shows it."""

    cell: CellResult
    anchor: str  # of its details on the page
    label: str
    distance: Estimate | None = None  # by the first judge
    from_raw: Difference | None = None  # its distance less that of the raw images
    opinions: tuple[Difference | None, ...] = ()  # the same by each of the other judges
    elsewhere: tuple[Estimate | None, ...] = ()  # the distance by each of them
    mark: str = ""  # BEST: significantly lower than all others of the set; TIED: as low, within the intervals

    @property
    def contested(self) -> bool:
        """Whether another judge sees another change of the raw images: its direction, or that there is any."""
        ways = {opinion.way for opinion in (self.from_raw, *self.opinions) if opinion is not None}
        return self.from_raw is not None and len(ways) > 1

    def score(self, name: str) -> Estimate | None:
        """A finite score, with an interval where it is a share of images."""
        value = self.cell.scores.get(name, math.nan)
        if not math.isfinite(value):
            return None
        n = self.cell.num_images
        return Estimate(value, binomial_interval(round(value * n), n) if name in _SHARES and n else None)


@dataclass(frozen=True)
class SetDigest:
    """The cells of one image set."""

    name: str
    anchor: str
    rows: tuple[Row, ...]
    comparison: Comparison
    others: tuple[Comparison, ...] = ()  # the same by each of the other judges

    @property
    def measure(self) -> str:
        """What its distances are, in words."""
        return MEASURES[self.comparison.measure]

    @cached_property
    def scored(self) -> tuple[Row, ...]:
        """Rows with a distance."""
        return tuple(row for row in self.rows if row.distance is not None)

    @cached_property
    def raw(self) -> Row | None:
        """The row of the images as they came; None where it has no distance."""
        return next((row for row in self.scored if row.cell.axes.is_raw), None)

    @cached_property
    def refined(self) -> tuple[Row, ...]:
        """The rows of refined images that have a distance; those that auto left as they came are not refined."""
        return tuple(row for row in self.scored if not (row.cell.axes.is_raw or row.cell.is_left))

    @cached_property
    def tied(self) -> tuple[Row, ...]:
        """Marked as TIED, the lowest first."""
        return tuple(sorted((row for row in self.rows if row.mark == TIED), key=_distance))

    def best(self, classifiers: Sequence[str] | None = None) -> Row | None:
        """The refined row of the lowest distance, among these classifiers."""
        rows = [row for row in self.refined if classifiers is None or row.cell.axes.classifier in classifiers]
        return min(rows, key=_distance, default=None)

    def difference(self, row: Row, other: Row) -> Difference | None:
        """Of their distances; None where the features of one are not at hand."""
        return next(iter(self.differences(row, other)), None)

    def differences(self, row: Row, other: Row) -> list[Difference]:
        """Of their distances, by each judge; [] where the features of one are not at hand."""
        if row.anchor not in self.comparison or other.anchor not in self.comparison or not self.comparison.is_enough:
            return []
        return [judge.difference(row.anchor, other.anchor) for judge in (self.comparison, *self.others)]


@dataclass(frozen=True)
class Digest:
    """The whole study as the report shows it."""

    results: Results
    axes: tuple[str, ...]  # that refined cells differ in
    sets: tuple[SetDigest, ...]
    resamples: int
    num_features: int  # of the first judge
    other_measures: tuple[str, ...] = ()  # what the other judges' distances are, in words

    @property
    def measure(self) -> str:
        """What all distances are, in words."""
        return self.sets[0].measure if self.sets else MEASURES["frechet"]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Of every cell, in the order of the results."""
        rows = {row.anchor: row for one in self.sets for row in one.rows}
        return tuple(rows[anchor] for anchor, _ in _numbered(self.results))

    @cached_property
    def classifiers(self) -> tuple[str, ...]:
        """Names of all that cells were refined with, in the order of the results."""
        named = [one.name for one in self.results.classifiers]
        used = [cell.axes.classifier for cell in self.results.cells if cell.axes.classifier is not None]
        return tuple(dict.fromkeys([*named, *used]))

    def classifier(self, name: str | None) -> ClassifierResult | None:
        """What was measured of the classifier of this name; None where nothing was."""
        return next((one for one in self.results.classifiers if one.name == name), None)

    def anchor(self, name: str) -> str:
        """Of a classifier's details on the page."""
        return f"classifier-{self.classifiers.index(name) + 1}"

    @cached_property
    def num_done(self) -> int:
        """Cells that have a result."""
        return sum(cell.error is None for cell in self.results.cells)

    @cached_property
    def num_cells(self) -> int:
        """Cells of the whole study, those not yet run among them."""
        return len(self.results.cells) + self.results.missing


def digested(results: Results, *, resamples: int = RESAMPLES) -> Digest:
    """Reads the cells' features and compares them. UserError for a reference or features that do not fit."""
    lead = JudgedBy(results.judge, results.reference, results.reference_words, results.real)
    references = [_reference(judge, results) for judge in (lead, *results.others)]
    axes = varied(results.cells)
    names = dict.fromkeys(cell.axes.drawn for cell in results.cells)
    sets = [_set(results, name, f"images-{i}", axes, references, resamples) for i, name in enumerate(names, 1)]
    others = tuple(MEASURES[measure_of(reference)] for reference in references[1:])
    return Digest(results, axes, tuple(sets), resamples, _num_features(references[0]), others)


def _num_features(reference: SetReference) -> int:
    return reference.features.shape[1] if isinstance(reference, KernelReference) else len(reference.mean)


def _reference(judge: JudgedBy, results: Results) -> SetReference:
    """What the judge compares with, by kernel distance where the smallest set has fewer images than features."""
    if judge.real is not None and judge.real.exists():
        with np.load(judge.real, allow_pickle=False) as arrays:
            rows = torch.from_numpy(arrays["features"])
        n = min((cell.num_images for cell in results.cells if cell.num_images), default=0)
        reference = reference_for(rows, n)
        if isinstance(reference, KernelReference):
            return reference
    stored = read_statistics(judge.reference)
    if stored is None:
        raise UserError(f"reference: {judge.reference} holds no statistics (mu, sigma); give an .npz of them")
    return FrechetReference(stored)


def _set(
    results: Results, name: str, anchor: str, axes: Sequence[str], references: Sequence[SetReference], resamples: int
) -> SetDigest:
    cells = [(anchor, cell) for anchor, cell in _numbered(results) if cell.axes.drawn == name]
    comparison, *others = (
        Comparison(_features(cells, "features" if i == 1 else f"features_{i}"), reference, resamples=resamples)
        for i, reference in enumerate(references, 1)
    )
    raw = next((anchor for anchor, cell in cells if cell.axes.is_raw and anchor in comparison), None)
    marks = _marks(comparison)
    rows = []
    for cell_anchor, cell in cells:
        distance, opinions, elsewhere = None, [None] * len(references), [None] * len(others)
        if cell_anchor in comparison:
            distance = comparison.distance(cell_anchor)
            opinions = [_from_raw(one, cell_anchor, raw) for one in (comparison, *others)]
            elsewhere = [one.distance(cell_anchor) for one in others]
        elif cell.error is None and math.isfinite(cell.scores.get(comparison.measure, math.nan)):
            distance = Estimate(cell.scores[comparison.measure], None)
        label, mark = cell_words(cell.axes, axes), marks.get(cell_anchor, "")
        rows.append(Row(cell, cell_anchor, label, distance, opinions[0], tuple(opinions[1:]), tuple(elsewhere), mark))
    return SetDigest(name, anchor, tuple(rows), comparison, tuple(others))


def _from_raw(comparison: Comparison, anchor: str, raw: str | None) -> Difference | None:
    if raw is None or raw == anchor or not comparison.is_enough:
        return None
    if raw not in comparison or anchor not in comparison:
        return None
    return comparison.difference(anchor, raw)


def _marks(comparison: Comparison) -> dict[str, str]:
    """None at all where nothing stands apart."""
    if len(comparison.names) < 2 or not comparison.is_enough:
        return {}
    tied = comparison.tied()
    if len(tied) == len(comparison.names):
        return {}
    return {tied[0]: BEST} if len(tied) == 1 else dict.fromkeys(tied, TIED)


def _numbered(results: Results) -> Iterator[tuple[str, CellResult]]:
    return ((f"cell-{number}", cell) for number, cell in enumerate(results.cells, 1))


def _features(cells: Sequence[tuple[str, CellResult]], name: str) -> Iterator[tuple[str, np.ndarray]]:
    for anchor, cell in cells:
        if cell.error is None and cell.arrays is not None:
            with np.load(cell.arrays, allow_pickle=False) as arrays:
                yield anchor, arrays[name]


def _distance(row: Row) -> float:
    assert row.distance is not None
    return row.distance.value


def radii(digest: Digest) -> list[tuple[str, float]]:
    """(norm, eps) of every accuracy, the clean one first."""
    found = {(a.norm, a.eps) for one in digest.results.classifiers for a in one.accuracies if a.eps > 0}
    return sorted(found)


def accuracy_at(classifier: ClassifierResult | None, norm: str, eps: float) -> Accuracy | None:
    """Under attack at eps; the clean one, of whatever norm, at 0."""
    if classifier is None:
        return None
    return next((a for a in classifier.accuracies if a.eps == eps and (eps == 0 or a.norm == norm)), None)
