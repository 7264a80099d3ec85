"""Frechet distance between the Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500).

It is the FID only where the features are the 2048-d ones of the 2015-12-05 Inception network.
"""

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError

BLOCK = 1024  # samples: sums of small matrices are rounded and handled as seldom as those of large ones

SMALL = 1e-13  # share of the largest eigenvalue below which rounding shows in a root


class Moments(Protocol):
    """What the distance needs of a set: mean [D] and covariance [D,D], float64."""

    @property
    def mean(self) -> np.ndarray:
        """[D], float64."""
        ...

    @property
    def covariance(self) -> np.ndarray:
        """[D,D], float64."""
        ...


class FrechetStatistics:
    """Running n, mean [D] and scatter [D,D] (sum of outer products about the mean) of features, in float64.

    Samples are kept until there are D of them (BLOCK at least), then summed up as many at a time: so memory is that of
    two [D,D] matrices whatever n is, batches of any size give the same bits, and a set of no more than D samples still
    has them, which a distance is computed from far faster than from a singular covariance. Only centred sums are added
    (Chan, Golub & LeVeque 1979), never E[xx^T] - E[x]E[x]^T, which cancels.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._summed = 0  # samples that are in _mean and _scatter
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((0, 0))  # [D,D] as soon as there is something in it
        self._kept: list[np.ndarray] = []  # each [n,D]; fewer than a block in all, or exactly one and nothing summed
        self._block = max(dim, BLOCK)

    @classmethod
    def of(cls, features: np.ndarray | Tensor) -> "FrechetStatistics":
        """Those of features [n,D]."""
        found = cls(features.shape[1])
        found.update(features)
        return found

    @property
    def n(self) -> int:
        """Samples seen."""
        return self._summed + self._num_kept

    @property
    def mean(self) -> np.ndarray:
        """[D]; zeros where nothing was seen."""
        if not self._kept:
            return self._mean
        kept = self._samples()
        return self._mean + (kept - self._mean).sum(axis=0) / self.n

    @property
    def covariance(self) -> np.ndarray:
        """[D,D] with n - 1 in the denominator, as numpy.cov has it. UserError below two samples."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.n}")
        if not self._kept:
            return self._scatter / (self.n - 1)
        kept = self._samples()
        mean = kept.mean(axis=0)
        centred = kept - mean
        scatter = centred.T @ centred
        if self._summed:
            gap = mean - self._mean
            scatter += self._scatter + np.outer(gap * (self._summed * len(kept) / self.n), gap)
        return scatter / (self.n - 1)

    @property
    def samples(self) -> np.ndarray | None:
        """Every sample [n,D] where there are at most D of them, else None."""
        return self._samples() if 0 < self.n <= self.dim and not self._summed else None

    def update(self, features: np.ndarray | Tensor) -> None:
        """Adds features [n,D] of any float type. UserError where one is not finite, ValueError for another shape."""
        batch = features.double().cpu().numpy() if isinstance(features, Tensor) else np.array(features, np.float64)
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise ValueError(f"features: expected shape [n,{self.dim}], got {list(batch.shape)}")
        bad = ~np.isfinite(batch).all(axis=1)
        if bad.any():
            raise UserError(
                f"features of image {self.n + int(bad.argmax())} are not finite ({int(bad.sum())} such in the batch)"
            )
        self._append(batch)

    def merge(self, other: "FrechetStatistics") -> None:
        """Adds what `other` has seen; `other` stays as it is."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {other.dim} features cannot join statistics of {self.dim}")
        if other._summed:
            self._add(other._summed, other._mean, other._scatter)
        for kept in list(other._kept):
            self._append(kept)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Everything it is, for a file; see from_arrays."""
        kept = self._samples() if self._kept else np.zeros((0, self.dim))
        return {"n": np.array(self._summed), "mean": self._mean, "scatter": self._scatter, "kept": kept}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "FrechetStatistics":
        """The statistics that as_arrays gave."""
        found = cls(len(arrays["mean"]))
        found._summed, found._mean, found._scatter = int(arrays["n"]), arrays["mean"], arrays["scatter"]
        found._kept = [arrays["kept"]] if len(arrays["kept"]) else []
        return found

    @property
    def _num_kept(self) -> int:
        return sum(map(len, self._kept))

    def _samples(self) -> np.ndarray:
        """The kept samples as one array, and kept as such."""
        if len(self._kept) > 1:
            self._kept = [np.concatenate(self._kept)]
        return self._kept[0]

    def _append(self, batch: np.ndarray) -> None:
        while len(batch):
            room = self._block - self._num_kept
            if room == 0:  # a whole block, and here is one more
                self._sum_up()
                continue
            self._kept.append(batch[:room])
            batch = batch[room:]
        if self._summed and self._num_kept == self._block:
            self._sum_up()

    def _sum_up(self) -> None:
        kept = self._samples()
        self._kept = []
        mean = kept.mean(axis=0)
        centred = kept - mean
        self._add(len(kept), mean, centred.T @ centred)

    def _add(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self._summed + n
        gap = mean - self._mean
        if self._summed:
            self._scatter += scatter
            self._scatter += np.outer(gap * (self._summed * n / total), gap)
        else:
            self._scatter = scatter.copy()
        self._mean = self._mean + gap * (n / total)
        self._summed = total


class FrechetReference:
    """A set that many others are compared with: what the distance needs of it is computed once.

    distance(moments) is frechet_distance(moments, reference).
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments

    @cached_property
    def mean(self) -> np.ndarray:
        """[D]."""
        return self._moments.mean

    @cached_property
    def covariance(self) -> np.ndarray:
        """[D,D]."""
        return self._moments.covariance

    @cached_property
    def factor(self) -> np.ndarray:
        """F [D,r] with F F^T the covariance: from the samples where they are few, else Cholesky's or eigenvectors'."""
        few = _few(self._moments)
        if few is not None:
            return few
        lower = _cholesky(self.covariance)
        return _factor(self.covariance) if lower is None else lower

    @cached_property
    def trace(self) -> float:
        """Of the covariance."""
        few = _few(self._moments)
        return float(np.trace(self.covariance) if few is None else (few**2).sum())

    def distance(self, moments: Moments) -> float:
        """|mean - mean_r|^2 + tr(S + S_r - 2 (S S_r)^(1/2)), float64, never negative.

        UserError for statistics of different dimension.
        """
        if len(moments.mean) != len(self.mean):
            raise UserError(
                f"statistics of {len(moments.mean)} features cannot be compared with statistics of {len(self.mean)}"
            )
        other = moments if isinstance(moments, FrechetReference) else FrechetReference(moments)
        gap = other.mean - self.mean
        # Equal sets differ from 0 by rounding alone, to either side.
        return max(0.0, float(gap @ gap + other.trace + self.trace - 2 * self._trace_of_root(other)))

    def _trace_of_root(self, other: "FrechetReference") -> float:
        """tr (S S_r)^(1/2), without a matrix square root.

        With S_r = F F^T the product has the eigenvalues of the symmetric F^T S F. The root of an eigenvalue that is
        zero but for rounding (1e-16) is 1e-8, which adds up where many are: singular covariances (fewer samples than
        features) have a factor G too, and the wanted roots are the singular values of G^T F.
        """
        if _few(other._moments) is None and self.factor.shape[0] == self.factor.shape[1]:
            factor, covariance = torch.from_numpy(self.factor), torch.from_numpy(other.covariance)
            values = _eigenvalues((factor.T @ (covariance @ factor)).numpy())
            if values[0] > SMALL * values[-1] or _cholesky(other.covariance) is not None:
                return _sum_of_roots(values)
        return _nuclear_norm(other.factor.T @ self.factor)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), float64, never negative.

    FrechetStatistics of fewer samples than features are compared through their samples, which is some hundred times
    faster than through the covariances. UserError for statistics of different dimension.
    """
    return FrechetReference(b).distance(a)


def roots(symmetric: np.ndarray) -> float:
    """The sum of the square roots of a positive semidefinite matrix's eigenvalues."""
    return _sum_of_roots(_eigenvalues(symmetric))


def _sum_of_roots(values: np.ndarray) -> float:
    return float(np.sqrt(values.clip(min=0)).sum())


def _eigenvalues(symmetric: np.ndarray) -> np.ndarray:
    """Ascending. torch's LAPACK (MKL, where torch has it) is twice as fast as numpy's."""
    return torch.linalg.eigvalsh(torch.from_numpy(symmetric)).numpy()


def _nuclear_norm(matrix: np.ndarray) -> float:
    """The sum of the singular values, from the eigenvalues of the smaller Gram matrix where those keep their digits."""
    wide = matrix.shape[0] <= matrix.shape[1]
    values = _eigenvalues(matrix @ matrix.T if wide else matrix.T @ matrix)
    if len(values) and values[0] < SMALL * values[-1]:  # squaring has cost the small ones theirs; this is far slower
        return float(np.linalg.svd(matrix, compute_uv=False).sum())
    return _sum_of_roots(values)


def _few(moments: Moments) -> np.ndarray | None:
    """F [D,n-1] with F F^T the covariance of a set that has no more samples than features, else None.

    The samples are turned (by a Householder reflection) so that one of them becomes sqrt(n) times the mean: without it
    the others have the scatter of the set and, unlike n centred samples, no direction to spare.
    """
    samples = moments.samples if isinstance(moments, FrechetStatistics) else None
    if samples is None or len(samples) < 2:
        return None
    n = len(samples)
    centred = samples - samples.mean(axis=0)
    normal = np.full(n, n**-0.5)
    normal[0] += 1
    turned = centred[1:] - np.outer(normal[1:] * (2 / (normal @ normal)), normal @ centred)
    return turned.T / (n - 1) ** 0.5


def _cholesky(covariance: np.ndarray) -> np.ndarray | None:
    """Lower L with S = L L^T, or None where S is singular to working precision."""
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(covariance))
    if failed:
        return None
    lower = factor.numpy()
    pivots = np.diag(lower) ** 2
    negligible = len(pivots) * np.finfo(np.float64).eps * np.diag(covariance).max()
    return lower if pivots.min() > negligible else None


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [D,r] with S = F F^T, from the r eigenvalues above rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])
