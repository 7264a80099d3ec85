"""What a Frechet distance would be with other images: resampled sets, and the limit of infinitely many."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.metrics.frechet import SMALL, FrechetReference, roots

POINTS = 15  # subset sizes of the extrapolation, as in its paper
FEWER_POINTS = 5  # of each jackknife's
GROUPS = 10  # of the jackknife
LEAST_PER_FEATURE = 5  # images: below, the limit is wrong by more than it corrects
SMALLEST = 5000  # images of the first of them, as there too; a quarter of the set where that is less


class Resampler:
    """Frechet distances of parts of one set of features [N,D] to a reference, without a covariance of each part.

    With the reference's covariance F F^T, the distance needs the eigenvalues of F^T S F. Features times F are computed
    once; a part of fewer images than features goes through the Gram matrix of its images.
    """

    def __init__(self, features: Tensor | np.ndarray, reference: FrechetReference) -> None:
        """UserError below two images or for another dimension."""
        self.n, dim = features.shape
        if self.n < 2:
            raise UserError(f"a Frechet distance needs at least 2 images in each set, got {self.n}")
        if dim != len(reference.mean):
            raise UserError(f"{dim} features cannot be compared with statistics of {len(reference.mean)}")
        self._reference = reference
        self._x = np.asarray(features, dtype=np.float64) - reference.mean
        self._squares = (self._x**2).sum(axis=1)
        self._projected = self._x @ reference.factor

    def distance(self, counts: np.ndarray) -> float:
        """Of the set in which image i occurs counts[i] times, int [N]."""
        there = counts > 0
        weights, n = counts[there].astype(np.float64), int(counts.sum())
        gap = weights @ self._x[there] / n
        trace = (weights @ self._squares[there] - n * (gap @ gap)) / (n - 1)
        projected = self._projected[there]
        projected = (projected - weights @ projected / n) * np.sqrt(weights / (n - 1))[:, None]
        few = projected.shape[0] < projected.shape[1]
        root = roots(projected @ projected.T if few else projected.T @ projected)
        return max(0.0, float(gap @ gap + trace + self._reference.trace - 2 * root))

    def influence(self) -> np.ndarray:
        """What each image adds to N times the distance, to first order and up to a constant; [N].

        The derivative of the distance along the image's weight: with the mean's gap g, and the centred features c and
        q = F^T c of covariance M, it is 2 g.c + |c|^2 - q^T M^(-1/2) q.
        """
        gap, projected = self._x.mean(axis=0), self._projected - self._projected.mean(axis=0)
        n, dim = projected.shape
        if n <= dim:  # q_i^T M^(-1/2) q_i is n - 1 times the i-th diagonal entry of the Gram matrix's root
            values, vectors = np.linalg.eigh(projected @ projected.T / (n - 1))
            root = (n - 1) * (vectors**2 @ np.sqrt(values.clip(min=0)))
        else:
            values, vectors = np.linalg.eigh(projected.T @ projected / (n - 1))
            kept = values > SMALL * values[-1]
            root = ((projected @ vectors[:, kept]) ** 2 / np.sqrt(values[kept])).sum(axis=1)
        centred = self._x - gap
        return 2 * centred @ gap + (centred**2).sum(axis=1) - root

    def extrapolated(self, *, seed: int = 0) -> "Extrapolation":
        """The distance at infinitely many images: intercept of a line in 1/N through seeded subsets of growing size.

        Chong & Forsyth 2020, arXiv:1911.07023. Only the images' bias goes: that of the reference's N stays. The
        standard error is a jackknife's, with each tenth of the images left out in turn. UserError where there are fewer
        images than five times the features: the distance is then no line in 1/N.
        """
        check_extrapolation(self.n, self._x.shape[1])
        rng = np.random.default_rng(seed)
        value, slope, sizes, distances = self._line(rng, np.arange(self.n), POINTS)
        groups = np.array_split(rng.permutation(self.n), GROUPS)
        kept = [np.concatenate([other for other in groups if other is not group]) for group in groups]
        limits = np.array([self._line(rng, index, FEWER_POINTS)[0] for index in kept])
        error = float(np.sqrt((GROUPS - 1) / GROUPS * ((limits - limits.mean()) ** 2).sum()))
        return Extrapolation(value, slope, sizes, distances, error)

    def _line(
        self, rng: np.random.Generator, index: np.ndarray, points: int
    ) -> tuple[float, float, list[int], list[float]]:
        """Intercept and slope of the line in 1/N through subsets of the images `index`, their sizes and distances."""
        n = len(index)
        sizes = np.unique(np.linspace(max(2, min(SMALLEST, n // 4)), n, points).round().astype(np.int64))
        distances = []
        for size in sizes:
            counts = np.zeros(self.n, dtype=np.int64)
            counts[index[rng.permutation(n)[:size]]] = 1
            distances.append(self.distance(counts))
        slope, intercept = np.polyfit(1 / sizes, distances, 1)
        return float(intercept), float(slope), sizes.tolist(), distances


def check_extrapolation(n: int, dim: int) -> None:
    """UserError where the distance of n images in `dim` features is no line in 1/N."""
    if n < (least := max(LEAST_PER_FEATURE * dim, 3)):
        raise UserError(
            f"infinite: {n} images are too few to extrapolate a distance in {dim} features; it needs {least} "
            f"({LEAST_PER_FEATURE} for each feature)"
        )


@dataclass(frozen=True)
class Extrapolation:
    """value: the distance at 1/N = 0 with its standard error; slope: what 1/N adds; distances of subsets of `sizes`."""

    value: float
    slope: float
    sizes: list[int]
    distances: list[float]
    error: float


def bootstrap_counts(rng: np.random.Generator, n: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of n things is in each bootstrap sample, int [n]: n draws with replacement. Efron 1979."""
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, n, n), minlength=n)
