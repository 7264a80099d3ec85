"""--eps auto: refine a part of the set at growing eps until the distance to real images turns back up."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from refine.auto_judging import MEASURES, Judging, Verdict
from refine.config import AUTO_NORMS, RefineConfig
from refine.refine_batch import BatchRefiner
from refine.work_folder import WorkFolder
from robust_models.attacks import PGD
from robust_models.errors import UserError
from robust_models.metrics import bootstrap_counts, inception_score, precision_recall
from robust_models.metrics.kernel_resampled import SetReference, measure_of, reference_for, resampler_for
from robust_models.runtime.distributed import Ranks

EPS = "eps.json"  # in the work folder
STARTS = {"l2": 0.25, "linf": 1 / 255}  # the smallest eps tried, pixels in [0,1]; each next one is twice as large
LARGEST = {"l2": 64.0, "linf": 32 / 255}
WORSE_IN_A_ROW = 2  # so many tries past the minimum end the climb
RESAMPLES = 100  # for each eps

Judge = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # x_u8 -> features [n,D], and logits [n,C] where it has some
RefineAt = Callable[[float], Tensor]  # eps -> the chosen part of the set, refined, uint8


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


def is_sure_gain(verdicts: Sequence[Verdict]) -> bool:
    """Whether the first judge sees a gain and no other one a loss."""
    return verdicts[0].is_gain and not any(verdict.is_loss for verdict in verdicts[1:])


def chosen_eps(
    config: RefineConfig,
    judging: Judging | None,
    refiner: BatchRefiner,
    attack_at: Callable[[float], PGD],
    targets: Tensor | None,
    work: WorkFolder,
    ranks: Ranks,
) -> float:
    """What --eps auto finds, on the first rank, or 0 where that is no sure gain; kept for a resumed run."""
    if judging is not None and not work.has(EPS):
        found = as_plain(choose_eps(judging, refiner, attack_at, targets))
        refined = judging.held_out(replace(refiner, attack=attack_at(found["eps"])), targets)
        verdicts = judging.verdicts(judging.held_out(None, targets), refined)
        is_gain = is_sure_gain(verdicts)
        taken = found["eps"] if is_gain or config.auto_accept == "best" else 0.0
        first, *others = (asdict(verdict) for verdict in verdicts)
        work.write_json(EPS, found | first | {"others": others, "is_gain": is_gain, "eps_taken": taken})
    ranks.barrier()
    return work.read_json(EPS)["eps_taken"]


def choose_eps(
    judging: Judging, refiner: BatchRefiner, attack_at: Callable[[float], PGD], targets: Tensor | None
) -> Curve:
    """The curve over eps on the choosing images; progress on stderr."""

    def refine_at(eps: float) -> Tensor:
        print(f"eps auto: {len(judging.chosen)} images at eps {eps:g}", file=sys.stderr)
        return judging.choosing_images(replace(refiner, attack=attack_at(eps)), targets)

    return search(refine_at, judging.see, judging.choosing, norm=refiner.attack.norm)


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
