"""Whether cells differ: distances with intervals, and paired differences over the same resampled images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robust_models.errors import UserError
from robust_models.metrics.half_splits import LEAST_IMAGES, distance_interval
from robust_models.metrics.kernel_resampled import SetReference, measure_of, resampler_for
from robust_models.metrics.resampled import bootstrap_counts

RESAMPLES = 400  # of differences
SPLITS = 100  # of single distances
TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, where it has one."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference(Estimate):
    """One number less another."""

    interval: tuple[float, float]

    @property
    def is_lower(self) -> bool:
        """Whether all of the interval lies below 0."""
        return self.interval[1] < 0

    @property
    def is_higher(self) -> bool:
        """Whether all of the interval lies above 0."""
        return self.interval[0] > 0

    @property
    def is_significant(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.is_lower or self.is_higher

    @property
    def way(self) -> str:
        """ "lower", "higher" or, where it is not significant, "same"."""
        return "lower" if self.is_lower else "higher" if self.is_higher else "same"


class Comparison:
    """Distances (Frechet or KID) to one reference of several versions of the same images, each under a name.

    Resample r holds the same images of every version: what makes an image easy or hard is in both distances and leaves
    their difference. Image i must be row i of each. A resample holds fewer different images than the set, which lifts
    both distances alike: the mean excess of the differences over the difference itself is taken off. A single distance
    has the interval of distance_interval: what pairs of images add does not cancel there, and a bootstrap would count
    it three times. Both are about other sets of N images; they say nothing of infinitely many images.
    """

    def __init__(
        self,
        versions: Iterable[tuple[str, np.ndarray]],
        reference: SetReference,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        """Versions are (name, features [N,D]), read one at a time. UserError where N or D is not the same for all."""
        self.n = 0  # images
        self.measure = measure_of(reference)
        self._values: dict[str, float] = {}
        self._intervals: dict[str, tuple[float, float]] = {}
        self._resampled: dict[str, np.ndarray] = {}  # [resamples]
        counts: list[np.ndarray] = []  # of each resample
        for name, features in versions:
            resampler = resampler_for(features, reference)
            if not self._values:
                self.n = resampler.n
                counts = list(bootstrap_counts(np.random.default_rng(seed), self.n, resamples))
            elif resampler.n != self.n:
                raise UserError(
                    f"{name}: features of {resampler.n} images, the others of its image set have {self.n}; "
                    "cells can be compared on the same images only"
                )
            self._values[name] = resampler.distance(np.ones(self.n, dtype=np.int64))
            if self.n >= LEAST_IMAGES:
                low, high = distance_interval(resampler, SPLITS, seed=seed)
                lowest = 0.0 if self.measure == "frechet" else -np.inf  # a kernel distance may be negative
                self._intervals[name] = max(lowest, low), max(lowest, high)
            self._resampled[name] = np.array([resampler.distance(drawn) for drawn in counts])

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def names(self) -> tuple[str, ...]:
        """Of the versions, in the order given."""
        return tuple(self._values)

    @property
    def is_enough(self) -> bool:
        """Whether there are enough images for intervals, without which no difference means anything."""
        return self.n >= LEAST_IMAGES

    def distance(self, name: str) -> Estimate:
        """That of one version, with its 95 % interval."""
        return Estimate(self._values[name], self._intervals.get(name))

    def difference(self, name: str, other: str) -> Difference:
        """The distance of `name` less that of `other`, with a bootstrap's interval over pairs of images."""
        value = self._values[name] - self._values[other]
        found = self._resampled[name] - self._resampled[other]
        low, high = np.quantile(found - (found.mean() - value), TAILS)
        return Difference(value, (float(low), float(high)))

    def lowest(self) -> str:
        """The name of the smallest distance; of equal ones, the first."""
        return min(self._values, key=self._values.__getitem__)

    def tied(self) -> tuple[str, ...]:
        """Those whose distance is not significantly higher than the lowest, which is one of them.

        The lowest is chosen on the images that it is compared on, and nothing is corrected for the number of
        comparisons: of twenty versions without any difference one may well stand apart.
        """
        lowest = self.lowest()
        return tuple(name for name in self._values if not self.difference(name, lowest).is_higher)
