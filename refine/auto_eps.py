"""--eps auto: refine a part of the set at growing eps until the Frechet distance turns back up.

The images and the half of the reference that choose are not those that judge the choice. Distances are to the
reference in the features of a judge that takes no part in refining.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.config import AUTO_NORMS, RefineConfig
from refine.refine_batch import BatchRefiner
from refine.selection import halves, spread
from robust_models.attacks import PGD
from robust_models.checkpoints import find
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.extractor import check_images, is_feature_space
from robust_models.features.involved import check_uninvolved
from robust_models.images import ImageSet, open_images, to_float, to_u8
from robust_models.metrics import (
    FrechetReference,
    FrechetStatistics,
    Resampler,
    bootstrap_counts,
    frechet_distance,
    inception_score,
    precision_recall,
)
from robust_models.runtime.files import sha256_of

MAX_REFERENCE = 10_000  # images of the reference, spread evenly
JUDGE_BATCH = 100
STARTS = {"l2": 0.25, "linf": 1 / 255}  # the smallest eps tried, pixels in [0,1]; each next one is twice as large
LARGEST = {"l2": 64.0, "linf": 32 / 255}
WORSE_IN_A_ROW = 2  # so many tries past the minimum end the climb
RESAMPLES = 100  # for each eps
VERDICT_RESAMPLES = 400

Judge = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # x_u8 -> features [n,D], and logits [n,C] where it has some
RefineAt = Callable[[float], Tensor]  # eps -> the chosen part of the set, refined, uint8
Pixels = Callable[[int], Tensor]  # index of an image -> [1,3,H,W] in the set's depth


@dataclass(frozen=True)
class Point:
    """One eps and how the images refined with it score; intervals are 95 % bootstraps over the images."""

    eps: float
    frechet: float
    interval: tuple[float, float]
    inception_score: float | None  # the judge's own
    precision: float | None
    recall: float | None
    chosen_in: float = 0.0  # share of the resamples in which this eps has the smallest distance


@dataclass(frozen=True)
class Curve:
    """Scores by eps, ascending from 0 (the images as they came)."""

    points: tuple[Point, ...]

    @property
    def best(self) -> Point:
        """The point of smallest distance."""
        return min(self.points, key=lambda point: point.frechet)

    @property
    def plausible(self) -> tuple[float, float]:
        """The smallest and largest eps that is the best in at least 5 % of the resamples."""
        likely = [point.eps for point in self.points if point.chosen_in >= 0.05]
        return min(likely), max(likely)


@dataclass(frozen=True)
class Verdict:
    """Whether the chosen eps also helps images that did not choose it."""

    frechet_before: float
    frechet_after: float
    difference_interval: tuple[float, float]  # of after less before, 95 %
    n_held_apart: int
    n_reference: int
    num_features: int  # of the judge
    judge: str

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.difference_interval[1] < 0


@dataclass(frozen=True)
class EpsSearch:
    """A judge and a reference in two halves: one chooses, one judges the choice."""

    judge: FeatureExtractor
    images: ImageSet
    chosen: Tensor  # indices of the images that choose
    rest: Tensor  # and of those that judge, as many at most
    choosing: Tensor  # reference features [M,D]
    judging: Tensor

    @classmethod
    def open(
        cls, config: RefineConfig, images: ImageSet, classifiers: Sequence[RobustClassifier], device: torch.device
    ) -> "EpsSearch":
        """Opens judge and reference. UserError where they do not fit, or the judge is of the classifiers' kind."""
        assert config.judge is not None
        assert config.reference is not None
        judge = open_features(_feature_space(config.judge), device=device)
        for name, classifier in zip(config.ckpts, classifiers, strict=True):
            check_uninvolved(judge, name, sha256_of(find(name)), classifier.description)
        reference = open_images(config.reference)
        for part in (images, reference):
            check_images(part, judge)
        if min(len(images), len(reference)) < 4:
            raise UserError(f"eps: auto needs at least 4 images and 4 real; got {len(images)} and {len(reference)}")
        every = spread(len(reference), MAX_REFERENCE)
        features = _features(judge, lambda i: reference.read(i, i + 1), every)
        chosen, rest = halves(len(images), config.auto_images)
        return cls(judge, images, chosen, rest[: config.auto_images], features[::2], features[1::2])

    def choose(self, refiner: BatchRefiner, attack_at: Callable[[float], PGD], targets: Tensor | None) -> Curve:
        """The curve over eps on the choosing images; progress on stderr."""

        def refine_at(eps: float) -> Tensor:
            print(f"eps auto: {len(self.chosen)} images at eps {eps:g}", file=sys.stderr)
            return _refined(replace(refiner, attack=attack_at(eps)), self.images, self.chosen, targets)

        def judged(x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
            parts = [self.judge(batch) for batch in x_u8.split(JUDGE_BATCH)]
            features = torch.cat(parts)
            return features, self.judge.logits(features)

        return search(refine_at, judged, self.choosing, norm=refiner.attack.norm)

    def verdict(self, refiner: BatchRefiner, targets: Tensor | None) -> Verdict:
        """What the refiner does to the images that did not choose, against the reference's other half."""
        before = _features(self.judge, lambda i: self.images.read(i, i + 1), self.rest)
        refined = _refined(refiner, self.images, self.rest, targets)
        after = torch.cat([self.judge(batch).cpu() for batch in refined.split(JUDGE_BATCH)])
        return compared(before, after, self.judging, judge=self.judge.name)


def compared(before: Tensor, after: Tensor, reference: Tensor, *, judge: str = "", seed: int = 0) -> Verdict:
    """Frechet distances to reference features [M,D] of features [N,D] of the same images before and after refining.

    The interval of their difference is a bootstrap over pairs of images (Efron 1979), about the difference found.
    """
    against = FrechetReference(FrechetStatistics.of(reference))
    first, second = Resampler(before, against), Resampler(after, against)
    draws = bootstrap_counts(np.random.default_rng(seed), len(before), VERDICT_RESAMPLES)
    found = np.array([second.distance(counts) - first.distance(counts) for counts in draws])
    whole = np.ones(len(before), dtype=np.int64)
    distances = first.distance(whole), second.distance(whole)
    low, high = np.quantile(found - found.mean(), (0.025, 0.975)) + distances[1] - distances[0]
    return Verdict(
        frechet_before=round(distances[0], 4),
        frechet_after=round(distances[1], 4),
        difference_interval=(round(float(low), 4), round(float(high), 4)),
        n_held_apart=len(before),
        n_reference=len(reference),
        num_features=before.shape[1],
        judge=judge,
    )


def search(refine_at: RefineAt, judge: Judge, reference: Tensor, *, norm: str, seed: int = 0) -> Curve:
    """The curve of refine_at over eps against reference features [M,D].

    eps doubles from STARTS until the distance has risen WORSE_IN_A_ROW times, then the gaps beside the minimum are
    halved once. UserError where a set has fewer than 2 images.
    """
    if norm not in AUTO_NORMS:
        raise UserError(f"eps: auto knows where to begin for {', '.join(AUTO_NORMS)}; give a number for norm={norm}")
    reference_statistics = FrechetStatistics.of(reference)
    seen: dict[float, tuple[Tensor, Tensor | None]] = {}

    def distance(eps: float) -> float:
        if eps not in seen:
            features, logits = judge(refine_at(eps))
            seen[eps] = features.cpu(), None if logits is None else logits.cpu()
        return frechet_distance(FrechetStatistics.of(seen[eps][0]), reference_statistics)

    tried = {0.0: distance(0.0)}
    eps, worse = STARTS[norm], 0
    while eps <= LARGEST[norm] and worse < WORSE_IN_A_ROW:
        tried[eps] = distance(eps)
        worse = 0 if tried[eps] == min(tried.values()) else worse + 1
        eps *= 2
    for middle in _beside_minimum(tried):
        tried[middle] = distance(middle)
    return _curve({eps: seen[eps] for eps in sorted(tried)}, tried, reference, seed)


def _beside_minimum(tried: dict[float, float]) -> list[float]:
    """The middles of the gaps to the left and right of the best eps."""
    order = sorted(tried)
    best = order.index(min(tried, key=tried.__getitem__))
    beside = [(order[i], order[i + 1]) for i in (best - 1, best) if 0 <= i and i + 1 < len(order)]
    return [(low + high) / 2 for low, high in beside]


def _curve(
    seen: dict[float, tuple[Tensor, Tensor | None]], tried: dict[float, float], reference: Tensor, seed: int
) -> Curve:
    resampled = _bootstrap([features for features, _ in seen.values()], FrechetStatistics.of(reference), seed)
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    chosen = np.bincount(resampled.argmin(axis=1), minlength=len(seen)) / len(resampled)
    points: list[Point] = []
    for i, (eps, (features, logits)) in enumerate(seen.items()):
        precision, recall = (
            precision_recall(features, reference) if min(len(features), len(reference)) > 3 else (None,) * 2
        )
        score = None if logits is None else inception_score(logits)
        interval = (float(low[i]), float(high[i]))
        points.append(Point(eps, tried[eps], interval, score, precision, recall, float(chosen[i])))
    return Curve(tuple(points))


def _bootstrap(columns: Sequence[Tensor], reference: FrechetStatistics, seed: int) -> np.ndarray:
    """Distances [resamples, eps]; every eps is resampled with the same images, so that columns compare in pairs.

    A resample holds fewer distinct images than the set, which lifts every distance alike; the excess over the set's own
    distance is taken off, so that intervals lie about it.
    """
    n = len(columns[0])
    rng = np.random.default_rng(seed)
    draws = list(bootstrap_counts(rng, n, RESAMPLES))
    against = FrechetReference(reference)
    resamplers = [Resampler(features, against) for features in columns]
    distances = np.array([[resampler.distance(counts) for resampler in resamplers] for counts in draws])
    whole = np.array([resampler.distance(np.ones(n, dtype=np.int64)) for resampler in resamplers])
    return (distances - (distances.mean(axis=0) - whole)).clip(min=0)


def format_curve(curve: Curve) -> str:
    """The curve as a table, and what it says."""
    rows = [f"{'eps':>8} {'Frechet':>10} {'95 %':>17} {'IS':>7} {'prec.':>6} {'recall':>6} {'best in':>8}"]
    for point in curve.points:
        low, high = point.interval
        figures = (point.inception_score, point.precision, point.recall)
        score, precision, recall = (f"{figure:.3f}" if figure is not None else "-" for figure in figures)
        mark = " <" if point is curve.best else ""
        rows.append(
            f"{point.eps:8.4g} {point.frechet:10.4f} {f'{low:.3f} - {high:.3f}':>17} {score:>7} {precision:>6} "
            f"{recall:>6} {point.chosen_in:8.0%}{mark}"
        )
    low, high = curve.plausible
    return "\n".join([*rows, f"eps {curve.best.eps:g} (from {low:g} to {high:g} in 95 % of the resamples)"])


def as_plain(curve: Curve) -> dict[str, Any]:
    """The curve, ready for JSON."""
    return {
        "eps": curve.best.eps,
        "plausible": list(curve.plausible),
        "curve": [asdict(point) for point in curve.points],
        "table": format_curve(curve),
    }


def _feature_space(judge: str) -> str:
    """The judge's name in features/: a name that is none there is a classifier's."""
    return judge if is_feature_space(judge) else f"classifier:{judge}"


def _refined(refiner: BatchRefiner, images: ImageSet, index: Tensor, targets: Tensor | None) -> Tensor:
    """The images at `index` refined, uint8 [n,3,H,W]."""
    parts: list[Tensor] = []
    for rows in index.split(refiner.block):
        pixels = torch.cat([images.read(i, i + 1) for i in rows.tolist()])
        stored, _ = refiner.refine(pixels, None if targets is None else targets[rows])
        parts.append(to_u8(to_float(stored)))
    return torch.cat(parts)


def _features(judge: FeatureExtractor, pixels: Pixels, index: Tensor) -> Tensor:
    """[n,D] on the CPU of the images at `index`."""
    batches = (torch.cat([pixels(i) for i in rows.tolist()]) for rows in index.split(JUDGE_BATCH))
    return torch.cat([judge(to_u8(to_float(batch))).cpu() for batch in batches])
