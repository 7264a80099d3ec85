"""Frechet distance between the Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500).

It is the FID only where the features are the 2048-d ones of the 2015-12-05 Inception network.
"""

from typing import Protocol

import numpy as np
from torch import Tensor

from robust_models.errors import UserError


class Moments(Protocol):
    """What the distance needs of a set: mean [D] and covariance [D,D], float64."""

    @property
    def mean(self) -> np.ndarray: ...

    @property
    def covariance(self) -> np.ndarray: ...


class FrechetStatistics:
    """Running n, mean [D] and scatter [D,D] (sum of outer products about the mean) of features, in float64.

    Batches, workers and ranks merge in any order to the same numbers up to float64 rounding: only centred sums are
    added (Chan, Golub & LeVeque 1979), never E[xx^T] - E[x]E[x]^T, which cancels.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """[D,D] with n - 1 in the denominator, as numpy.cov has it. UserError below two samples."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.n}")
        return self.scatter / (self.n - 1)

    def update(self, features: np.ndarray | Tensor) -> None:
        """Adds features [n,D] of any float type. UserError where one is not finite, ValueError for another shape."""
        batch = features.double().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features, np.float64)
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise ValueError(f"features: expected shape [n,{self.dim}], got {list(batch.shape)}")
        bad = ~np.isfinite(batch).all(axis=1)
        if bad.any():
            raise UserError(
                f"features of image {self.n + int(bad.argmax())} are not finite ({int(bad.sum())} such in the batch)"
            )
        if len(batch):
            mean = batch.mean(axis=0)
            centred = batch - mean
            self._add(len(batch), mean, centred.T @ centred)

    def merge(self, other: "FrechetStatistics") -> None:
        """Adds what `other` has seen; `other` stays as it is."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {other.dim} features cannot join statistics of {self.dim}")
        if other.n:
            self._add(other.n, other.mean, other.scatter)

    def _add(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.n + n
        gap = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(gap * (self.n * n / total), gap)
        self.mean = self.mean + gap * (n / total)
        self.n = total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), float64, never negative.

    UserError for statistics of different dimension.
    """
    if len(a.mean) != len(b.mean):
        raise UserError(f"statistics of {len(a.mean)} features cannot be compared with statistics of {len(b.mean)}")
    s_a, s_b = a.covariance, b.covariance
    gap = a.mean - b.mean
    # Equal sets differ from 0 by rounding alone, to either side.
    return max(0.0, float(gap @ gap + np.trace(s_a) + np.trace(s_b) - 2 * _trace_of_root(s_a, s_b)))


def _trace_of_root(s_a: np.ndarray, s_b: np.ndarray) -> float:
    """tr (S_a S_b)^(1/2), without a matrix square root.

    With S_a = L L^T, the product has the eigenvalues of the symmetric L^T S_b L. The root of an eigenvalue that is zero
    but for rounding (1e-16) is 1e-8, which adds up where many are: singular covariances (fewer samples than features)
    go through factors S = F F^T instead, whose F_a^T F_b has the wanted roots as singular values.
    """
    l_a, l_b = _cholesky(s_a), _cholesky(s_b)
    if l_a is not None and l_b is not None:
        return float(np.sqrt(np.linalg.eigvalsh(l_a.T @ s_b @ l_a).clip(min=0)).sum())
    f_a = _factor(s_a) if l_a is None else l_a
    f_b = _factor(s_b) if l_b is None else l_b
    return float(np.linalg.svd(f_a.T @ f_b, compute_uv=False).sum())


def _cholesky(covariance: np.ndarray) -> np.ndarray | None:
    """Lower L with S = L L^T, or None where S is singular to working precision."""
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
    pivots = np.diag(lower) ** 2
    negligible = len(pivots) * np.finfo(np.float64).eps * np.diag(covariance).max()
    return lower if pivots.min() > negligible else None


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [D,r] with S = F F^T, from the r eigenvalues above rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])
