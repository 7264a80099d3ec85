"""Shares with their intervals, as if answers were independent and by resampling what they depend on; agreement."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np

from robust_models.metrics import bootstrap_counts

Interval = tuple[float, float]
Clusters = Literal["raters and pairs", "pairs"]
ENOUGH_RATERS = 5  # to resample them; fewer say nothing about raters who were not asked
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Share:
    """hits of n, its 95 % interval (Wilson 1927) and the two-sided binomial p against one half; None where n is 0."""

    hits: int
    n: int
    share: float | None = None
    interval: Interval | None = None
    p: float | None = None


def share_of(hits: int, n: int) -> Share:
    """The share of hits among n answers, taken as independent."""
    from scipy.stats import binomtest

    if n == 0:
        return Share(hits, n)
    test = binomtest(hits, n)
    interval = test.proportion_ci(method="wilson")
    return Share(hits, n, hits / n, (float(interval.low), float(interval.high)), float(test.pvalue))


def clustered_interval(
    hits: np.ndarray, decided: np.ndarray, *, resamples: int, seed: int
) -> tuple[Interval, Clusters] | None:
    """95 % percentile interval of hits.sum() / decided.sum(), both [raters, pairs] counts, and what was resampled.

    Raters and, independently, pairs are drawn with replacement (Owen 2007, "The pigeonhole bootstrap", section 3), with
    fewer than five raters only the pairs. None without a decided answer.
    """
    if not decided.any():
        return None
    num_raters, num_pairs = decided.shape
    both = num_raters >= ENOUGH_RATERS
    rng = np.random.default_rng(seed)
    shares = []
    every_rater = repeat(np.ones(num_raters, dtype=np.int64), resamples)
    drawn_raters = bootstrap_counts(rng, num_raters, resamples) if both else every_rater
    for raters, pairs in zip(drawn_raters, bootstrap_counts(rng, num_pairs, resamples), strict=True):
        n = raters @ decided @ pairs
        if n:
            shares.append(raters @ hits @ pairs / n)
    low, high = np.percentile(shares, _PERCENTILES)
    return (float(low), float(high)), "raters and pairs" if both else "pairs"


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 where all agree, 0 where agreement is that of chance, below for worse.

    units: the values that each unit got, from as many raters as judged it; units with fewer than two do not count.
    None where alpha is not defined: nothing to compare, or a single value throughout. Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", section C.
    """
    totals: Counter[Hashable] = Counter()
    disagreeing = 0.0  # ordered pairs of unlike values within units, each unit weighted as its number of values
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        totals += counts
        like = sum(count * (count - 1) for count in counts.values())
        disagreeing += (len(values) * (len(values) - 1) - like) / (len(values) - 1)
    n = totals.total()
    by_chance = n * n - sum(count * count for count in totals.values())
    return None if by_chance == 0 else 1 - (n - 1) * disagreeing / by_chance
