"""How far a score of N images lies from what other N images would give: 95 % intervals from random half splits.

Cut the images at random into halves, again and again. With the scores u and v of the two halves, D = (u - v) / 2 and
M = (u + v) / 2, the variance of the score of all N images is E[D^2] - Var(M). Why: a score is a sum of terms that
depend on one image, on pairs, on triples ... (Efron & Stein 1981). The reshuffling alone, which is what a jackknife or
a bootstrap sees too, counts a term of k images once for each of its subsets; those of an odd number of images are in D,
those of an even number in M, and the alternating sum is the number of terms. It matters where sets are close: there
the Frechet distance is made of pairs, which E[D^2] counts twice and a bootstrap three times.

The intervals are about other sets of N images against the same reference. They say nothing of infinitely many images,
nor of other references. Measured coverage: benchmarks/coverage.py.
"""

from typing import Protocol

import numpy as np
from scipy import stats

from robust_models.errors import UserError

TAIL = 0.025
LEAST_IMAGES = 4  # each half of them has a covariance
LEAST_SPLITS = 50  # below, the spread is a guess


class Distances(Protocol):
    """Distances to one reference of sets that are made of the same n images; Resampler is such."""

    n: int

    def distance(self, counts: np.ndarray) -> float:
        """Of the set in which image i occurs counts[i] times, int [n]."""
        ...

    def influence(self) -> np.ndarray:
        """What each image adds to n times the distance, to first order and up to a constant; [n]."""
        ...


def distance_interval(distances: Distances, splits: int, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the expected distance of other sets of n images to the reference. UserError below 4 images."""
    n = distances.n
    if n < LEAST_IMAGES:
        raise UserError(f"an interval of a distance needs at least {LEAST_IMAGES} images, got {n}")
    halves = half_splits(n, splits, seed=seed)
    first, second = (
        np.array([distances.distance(half.astype(np.int64)) for half in side]) for side in (halves, ~halves)
    )
    whole = distances.distance(np.ones(n, dtype=np.int64))
    return half_split_interval(whole, first, second, influence=distances.influence())


def half_splits(n: int, splits: int, *, seed: int = 0) -> np.ndarray:
    """Which of n images are in the first half, bool [splits,n]: n // 2 in each row, the rest are the second half."""
    rng = np.random.default_rng(seed)
    first = np.zeros((splits, n), dtype=bool)
    for row in first:
        row[rng.permutation(n)[: n // 2]] = True
    return first


def half_split_interval(
    score: float, first: np.ndarray, second: np.ndarray, *, influence: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % interval of the expected score of N images, from the scores [splits] of the halves of each split.

    influence [N]: to first order, what each image adds to N times the score; with it the interval knows of outliers:
    of the error in its own width (Student's t for the normal) and of their skewness. The score of close sets has a
    spread that grows with the score: a score that came out low by chance would also look sure of itself. So the
    interval is symmetric on the scale on which the spread is constant, which to second order moves its middle up.
    """
    difference, mean = (first - second) / 2, (first + second) / 2
    odd, even = float((difference**2).mean()), float(mean.var(ddof=1))
    variance = max(odd - even, even)  # the terms of pairs alone make `even`; estimates of near-equal sets fall below
    if odd == 0:
        return score, score
    growth = 2 * float(np.cov(difference**2, mean)[0, 1]) / odd  # of the variance with the score
    freedom = len(first) * variance**2 / (odd**2 + even**2)  # both are means of so many squares
    if influence is not None:
        centred = influence - influence.mean()
        second_moment, third, fourth = ((centred**power).mean() for power in (2, 3, 4))
        if second_moment > 0:
            growth += float(third / second_moment) / len(influence)
            of_images = 2 * len(influence) / max(float(fourth / second_moment**2) - 1, 1e-9)
            freedom = max(1.0, 1 / (1 / freedom + 1 / of_images))
    quantile = float(stats.t.ppf(1 - TAIL, freedom))
    middle, reach = score + quantile**2 * growth / 4, quantile * variance**0.5
    return min(score, middle - reach), max(score, middle + reach)
