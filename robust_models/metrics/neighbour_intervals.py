"""95 % intervals of precision, recall, density and coverage: what other sets of as many images would give.

The reference stands still, and with it its balls. Precision and density are then means over the images. Recall and
coverage are not: whether a real image is met hangs on all images near it, so no variance that is put together from
terms of one and two images (half_splits.py) holds. They get a jackknife of tenths, which is never too small in the mean
(Efron & Stein 1981) and up to twice too large where nearly all or none is met: these intervals hold at least as often
as they say. Measured: benchmarks/coverage.py.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from robust_models.metrics.density_coverage import inside_each
from robust_models.metrics.half_splits import TAIL
from robust_models.metrics.precision_recall import ROWS, inside_manifold, squared_distances, squared_radii

Interval = tuple[float, float]
Score = Callable[[np.ndarray], float]  # of the images that are kept, bool [N]
TENTHS = 10
SPARE = 30  # neighbours beyond the k-th, of which a tenth may be left out


def precision_recall_intervals(
    features: Tensor, reference: Tensor, *, k: int = 3, splits: int = 200, seed: int = 0
) -> tuple[Interval, Interval]:
    """Those of precision_recall of the same arguments. splits: of the images, in groupings of ten."""
    features, reference = _centred(features, reference)
    precision = share_interval(inside_manifold(features, reference, k))
    recall = _jackknifed(_recall(features, reference, k), len(features), splits, seed)
    return precision, recall


def share_interval(chosen: Tensor) -> Interval:
    """Of the share of true values in chosen, bool [N], each image on its own: Wilson 1927."""
    found = stats.binomtest(int(chosen.sum()), len(chosen)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def density_coverage_intervals(
    features: Tensor, reference: Tensor, *, k: int = 5, splits: int = 200, seed: int = 0
) -> tuple[Interval, Interval]:
    """Those of density_coverage of the same arguments. splits: of the images, in groupings of ten."""
    features, reference = _centred(features, reference)
    radii = torch.cat([squared_radii(rows, reference, k) for rows in reference.split(ROWS)])
    inside = [inside_each(rows, reference, radii).cpu() for rows in features.split(ROWS)]
    balls = torch.cat([part.sum(dim=1) for part in inside]).double().numpy() / k
    reach = float(stats.t.ppf(1 - TAIL, len(balls) - 1) * balls.std(ddof=1) / len(balls) ** 0.5)
    image, ball = (found.numpy() for found in torch.cat([part.to_sparse() for part in inside]).coalesce().indices())

    def coverage(kept: np.ndarray) -> float:
        met = np.zeros(len(reference), dtype=bool)
        met[ball[kept[image]]] = True
        return float(met.mean())

    density = float(balls.mean())
    return (max(0.0, density - reach), density + reach), _jackknifed(coverage, len(balls), splits, seed)


def _jackknifed(score: Score, n: int, splits: int, seed: int) -> Interval:
    """1.96 standard errors about the score of all n images; each tenth of each random grouping is left out in turn."""
    rng = np.random.default_rng(seed)
    variances = []
    for _ in range(max(1, splits // TENTHS)):
        tenth = rng.permutation(n) % TENTHS
        without = np.array([score(tenth != left_out) for left_out in range(TENTHS)])
        variances.append((TENTHS - 1) * without.var())
    whole, reach = score(np.ones(n, dtype=bool)), stats.norm.ppf(1 - TAIL) * np.mean(variances) ** 0.5
    return max(0.0, float(whole - reach)), min(1.0, float(whole + reach))


def _recall(features: Tensor, reference: Tensor, k: int) -> Score:
    """The share of the reference that lies in a ball of the kept features, which grow as their neighbours go."""
    nearest, distances, image, real, squared = [], [], [], [], []
    for first, rows in zip(range(0, len(features), ROWS), features.split(ROWS), strict=True):
        among, _ = squared_distances(rows, features)
        among[torch.arange(len(rows)), first + torch.arange(len(rows))] = torch.inf  # not its own neighbour
        near = among.topk(min(k + SPARE, len(features) - 1), dim=1, largest=False)
        across, _ = squared_distances(rows, reference)
        i, j = (across <= near.values[:, -1:]).nonzero(as_tuple=True)
        nearest.append(near.indices)
        distances.append(near.values)
        image.append(first + i)
        real.append(j)
        squared.append(across[i, j])
    neighbour, radius, image, real, squared = (
        torch.cat(parts).cpu().numpy() for parts in (nearest, distances, image, real, squared)
    )

    def recall(kept: np.ndarray) -> float:
        kth = (kept[neighbour].cumsum(axis=1) >= k).argmax(axis=1)
        inside = kept[image] & (squared <= radius[np.arange(len(radius)), kth][image])
        met = np.zeros(len(reference), dtype=bool)
        met[real[inside]] = True
        return float(met.mean())

    return recall


def _centred(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 about the reference's mean: distances do not change, their rounding does."""
    centre = reference.double().mean(dim=0)
    return features.double() - centre, reference.double() - centre
