"""--eps auto: refine a part of the set at growing eps until the distance to real images turns back up.

The images and the half of the reference that choose are not those that judge the choice. Distances are in the features
of judges that take no part in refining: Frechet distances, or KIDs where a set has fewer images than features.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.config import AUTO_NORMS, RefineConfig
from refine.refine_batch import BatchRefiner
from refine.selection import halves, spread
from robust_models.attacks import PGD
from robust_models.checkpoints.flags import file_of
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.efficientnet import limits_of
from robust_models.features.extractor import check_features, check_images, is_feature_space, split_spaces
from robust_models.features.involved import NO_JUDGE, check_uninvolved, judges_at_hand
from robust_models.images import ImageSet, open_images, to_float, to_u8
from robust_models.metrics import bootstrap_counts, inception_score, precision_recall
from robust_models.metrics.kernel_resampled import SetReference, measure_of, reference_for, resampler_for
from robust_models.runtime.files import sha256_of

MAX_REFERENCE = 10_000  # images of the reference, spread evenly
JUDGE_BATCH = 100
STARTS = {"l2": 0.25, "linf": 1 / 255}  # the smallest eps tried, pixels in [0,1]; each next one is twice as large
LARGEST = {"l2": 64.0, "linf": 32 / 255}
WORSE_IN_A_ROW = 2  # so many tries past the minimum end the climb
RESAMPLES = 100  # for each eps
VERDICT_RESAMPLES = 400
LEAST_FOR_VERDICT = 100  # images: with fewer the command says so

MEASURES = {"frechet": "Frechet distance", "kid": "KID"}

Judge = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # x_u8 -> features [n,D], and logits [n,C] where it has some
RefineAt = Callable[[float], Tensor]  # eps -> the chosen part of the set, refined, uint8
Pixels = Callable[[int], Tensor]  # index of an image -> [1,3,H,W] in the set's depth


@dataclass(frozen=True)
class Point:
    """One eps and how the images refined with it score; intervals are 95 % bootstraps over the images."""

    eps: float
    distance: float
    interval: tuple[float, float]
    inception_score: float | None  # the judge's own
    precision: float | None
    recall: float | None
    chosen_in: float = 0.0  # share of the resamples in which this eps has the smallest distance


@dataclass(frozen=True)
class Curve:
    """Scores by eps, ascending from 0 (the images as they came)."""

    points: tuple[Point, ...]
    measure: str = "frechet"  # or "kid"

    @property
    def best(self) -> Point:
        """The point of smallest distance."""
        return min(self.points, key=lambda point: point.distance)

    @property
    def plausible(self) -> tuple[float, float]:
        """The smallest and largest eps that is the best in at least 5 % of the resamples."""
        likely = [point.eps for point in self.points if point.chosen_in >= 0.05]
        return min(likely), max(likely)


@dataclass(frozen=True)
class Verdict:
    """Whether the chosen eps also helps images that did not choose it, in one judge's features."""

    measure: str  # "frechet" or "kid"
    distance_before: float
    distance_after: float
    difference_interval: tuple[float, float]  # of after less before, 95 %
    n_held_apart: int
    n_reference: int
    num_features: int  # of the judge
    judge: str

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.difference_interval[1] < 0

    @property
    def is_loss(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.difference_interval[0] > 0


def is_sure_gain(verdicts: Sequence[Verdict]) -> bool:
    """Whether the first judge sees a gain and no other one a loss."""
    return verdicts[0].is_gain and not any(verdict.is_loss for verdict in verdicts[1:])


@dataclass(frozen=True)
class EpsSearch:
    """Judges, the first of which chooses, and a reference in two halves: one chooses, one judges the choice."""

    judges: tuple[FeatureExtractor, ...]
    images: ImageSet
    chosen: Tensor  # indices of the images that choose
    rest: Tensor  # and of those that judge, as many at most
    choosing: Tensor  # reference features [M,D] of the first judge
    judging: tuple[Tensor, ...]  # of each

    @classmethod
    def open(
        cls, config: RefineConfig, images: ImageSet, classifiers: Sequence[RobustClassifier], device: torch.device
    ) -> "EpsSearch":
        """Opens judges and reference. UserError where they do not fit, or a judge is of the classifiers' kind."""
        assert config.reference is not None
        given = config.judge and [_feature_space(name) for name in split_spaces(config.judge)]
        names = given or judges_at_hand([classifier.description for classifier in classifiers])
        if not names:
            raise UserError(
                f"judge: none is at hand ({NO_JUDGE}); or give --judge CLASSIFIER, one that does not refine"
            )
        judges = tuple(open_features(name, device=device) for name in names)
        reference = open_images(config.reference)
        for note in notes(judges, dict(zip(config.ckpts, classifiers, strict=True))):
            print(f"note: {note}", file=sys.stderr)
        for judge in judges:
            for name, classifier in zip(config.ckpts, classifiers, strict=True):
                check_uninvolved(judge, name, sha256_of(file_of(name)), classifier.description)
            for part in (images, reference):
                check_images(part, judge)
        if min(len(images), len(reference)) < 4:
            raise UserError(f"eps: auto needs at least 4 images and 4 real; got {len(images)} and {len(reference)}")
        every = spread(len(reference), MAX_REFERENCE)
        features = [_features(judge, lambda i: reference.read(i, i + 1), every) for judge in judges]
        chosen, rest = halves(len(images), config.auto_images)
        judging = tuple(rows[1::2] for rows in features)
        return cls(judges, images, chosen, rest[: config.auto_images], features[0][::2], judging)

    def choose(self, refiner: BatchRefiner, attack_at: Callable[[float], PGD], targets: Tensor | None) -> Curve:
        """The curve over eps on the choosing images; progress on stderr."""

        def refine_at(eps: float) -> Tensor:
            print(f"eps auto: {len(self.chosen)} images at eps {eps:g}", file=sys.stderr)
            return _refined(replace(refiner, attack=attack_at(eps)), self.images, self.chosen, targets)

        def judged(x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
            judge = self.judges[0]
            features = torch.cat([judge(batch) for batch in x_u8.split(JUDGE_BATCH)])
            return features, judge.logits(features)

        return search(refine_at, judged, self.choosing, norm=refiner.attack.norm)

    def verdicts(self, refiner: BatchRefiner, targets: Tensor | None) -> list[Verdict]:
        """What the refiner does to images that did not choose, by each judge, against the reference's other half."""
        refined = _refined(refiner, self.images, self.rest, targets)
        found = []
        for judge, reference in zip(self.judges, self.judging, strict=True):
            before = _features(judge, lambda i: self.images.read(i, i + 1), self.rest)
            after = torch.cat([judge(batch).cpu() for batch in refined.split(JUDGE_BATCH)])
            found.append(compared(before, after, reference, judge=judge.name))
        return found


def compared(before: Tensor, after: Tensor, reference: Tensor, *, judge: str = "", seed: int = 0) -> Verdict:
    """Distances to reference features [M,D] of features [N,D] of the same images before and after refining.

    The interval of their difference is a bootstrap over pairs of images (Efron 1979), about the difference found.
    """
    against = reference_for(reference, len(before))
    first, second = resampler_for(before, against), resampler_for(after, against)
    draws = bootstrap_counts(np.random.default_rng(seed), len(before), VERDICT_RESAMPLES)
    found = np.array([second.distance(counts) - first.distance(counts) for counts in draws])
    whole = np.ones(len(before), dtype=np.int64)
    distances = first.distance(whole), second.distance(whole)
    low, high = np.quantile(found - found.mean(), (0.025, 0.975)) + distances[1] - distances[0]
    return Verdict(
        measure=measure_of(against),
        distance_before=_short(distances[0]),
        distance_after=_short(distances[1]),
        difference_interval=(_short(low), _short(high)),
        n_held_apart=len(before),
        n_reference=len(reference),
        num_features=before.shape[1],
        judge=judge,
    )


def _short(number: float) -> float:
    return float(f"{number:.5g}")


def search(refine_at: RefineAt, judge: Judge, reference: Tensor, *, norm: str, seed: int = 0) -> Curve:
    """The curve of refine_at over eps against reference features [M,D].

    eps doubles from STARTS until the distance has risen WORSE_IN_A_ROW times, then the gaps beside the minimum are
    halved once. UserError where a set has fewer than 2 images.
    """
    if norm not in AUTO_NORMS:
        raise UserError(f"eps: auto knows where to begin for {', '.join(AUTO_NORMS)}; give a number for norm={norm}")
    seen: dict[float, tuple[Tensor, Tensor | None]] = {}

    def look(eps: float) -> Tensor:
        if eps not in seen:
            features, logits = judge(refine_at(eps))
            seen[eps] = features.cpu(), None if logits is None else logits.cpu()
        return seen[eps][0]

    against = reference_for(reference, len(look(0.0)))

    def distance(eps: float) -> float:
        return resampler_for(look(eps), against).distance(np.ones(len(look(0.0)), dtype=np.int64))

    tried = {0.0: distance(0.0)}
    eps, worse = STARTS[norm], 0
    while eps <= LARGEST[norm] and worse < WORSE_IN_A_ROW:
        tried[eps] = distance(eps)
        worse = 0 if tried[eps] == min(tried.values()) else worse + 1
        eps *= 2
    for middle in _beside_minimum(tried):
        tried[middle] = distance(middle)
    return _curve({eps: seen[eps] for eps in sorted(tried)}, tried, reference, against, seed)


def _beside_minimum(tried: dict[float, float]) -> list[float]:
    """The middles of the gaps to the left and right of the best eps."""
    order = sorted(tried)
    best = order.index(min(tried, key=tried.__getitem__))
    beside = [(order[i], order[i + 1]) for i in (best - 1, best) if 0 <= i and i + 1 < len(order)]
    return [(low + high) / 2 for low, high in beside]


def _curve(
    seen: dict[float, tuple[Tensor, Tensor | None]],
    tried: dict[float, float],
    reference: Tensor,
    against: SetReference,
    seed: int,
) -> Curve:
    resampled = _bootstrap([features for features, _ in seen.values()], against, seed)
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
    return Curve(tuple(points), measure_of(against))


def _bootstrap(columns: Sequence[Tensor], against: SetReference, seed: int) -> np.ndarray:
    """Distances [resamples, eps]; every eps is resampled with the same images, so that columns compare in pairs.

    A resample holds fewer distinct images than the set, which lifts every distance alike; the excess over the set's own
    distance is taken off, so that intervals lie about it.
    """
    n = len(columns[0])
    rng = np.random.default_rng(seed)
    draws = list(bootstrap_counts(rng, n, RESAMPLES))
    resamplers = [resampler_for(features, against) for features in columns]
    distances = np.array([[resampler.distance(counts) for resampler in resamplers] for counts in draws])
    whole = np.array([resampler.distance(np.ones(n, dtype=np.int64)) for resampler in resamplers])
    about = distances - (distances.mean(axis=0) - whole)
    return about if measure_of(against) == "kid" else about.clip(min=0)


def format_curve(curve: Curve) -> str:
    """The curve as a table, and what it says."""
    name = MEASURES[curve.measure].split()[0]
    rows = [f"{'eps':>8} {name:>10} {'95 %':>17} {'IS':>7} {'prec.':>6} {'recall':>6} {'best in':>8}"]
    for point in curve.points:
        low, high = point.interval
        figures = (point.inception_score, point.precision, point.recall)
        score, precision, recall = (f"{figure:.3f}" if figure is not None else "-" for figure in figures)
        mark = " <" if point is curve.best else ""
        rows.append(
            f"{point.eps:8.4g} {point.distance:10.4g} {f'{low:.3g} - {high:.3g}':>17} {score:>7} {precision:>6} "
            f"{recall:>6} {point.chosen_in:8.0%}{mark}"
        )
    low, high = curve.plausible
    return "\n".join([*rows, f"eps {curve.best.eps:g} (from {low:g} to {high:g} in 95 % of the resamples)"])


def as_plain(curve: Curve) -> dict[str, Any]:
    """The curve, ready for JSON."""
    return {
        "eps": curve.best.eps,
        "measure": curve.measure,
        "plausible": list(curve.plausible),
        "curve": [asdict(point) for point in curve.points],
        "table": format_curve(curve),
    }


def notes(judges: Sequence[FeatureExtractor], classifiers: Mapping[str, RobustClassifier]) -> list[str]:
    """What to know before believing the judges: that one is of the classifiers' kind, or a classifier not robust."""
    found = []
    for judge in judges:
        names = [n for n, one in classifiers.items() if getattr(judge, "class_names", None) == one.class_names]
        if names:
            found.append(
                f"{judge.name} is a classifier of the same classes as {', '.join(names)}: what such a one adds, it may "
                "see as an improvement where people see none"
            )
    found += [limits for judge in judges if (limits := limits_of(judge.name))]
    weak = [name for name, one in classifiers.items() if one.description.threat_model is None]
    if weak and classifiers:
        found.append(
            f"nothing says that {', '.join(weak)} was trained to withstand attacks; if not, its changes look like noise"
        )
    return found


def check_judges(text: str) -> None:
    """UserError where a judge of --judge can only be a name, and there is no such feature space or classifier."""
    for name in split_spaces(text):
        try:
            check_features(_feature_space(name))
        except UserError as error:
            raise UserError(f"judge: {str(error).removeprefix('features: ')}") from error


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
