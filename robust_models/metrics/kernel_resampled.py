"""Kernel distances of parts of one set, for paired comparisons where images are fewer than features.

A Frechet distance then compares covariances that are singular; the kernel distance is unbiased at any N.
"""

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.metrics.frechet import FrechetReference, FrechetStatistics
from robust_models.metrics.half_splits import Distances
from robust_models.metrics.kernel import cubic_kernel
from robust_models.metrics.resampled import Resampler


class KernelReference:
    """A set that others are compared with by kernel distance: what is needed of it is computed once."""

    def __init__(self, features: Tensor | np.ndarray) -> None:
        """Of features [M,D]. UserError below two images."""
        self.features = torch.as_tensor(features).double()
        if len(self.features) < 2:
            raise UserError(f"a kernel distance needs at least 2 images in each set, got {len(self.features)}")
        kernel = cubic_kernel(self.features, self.features)
        m = len(kernel)
        self.within = float((kernel.sum() - kernel.diagonal().sum()) / (m * (m - 1)))

    def distance(self, features: Tensor | np.ndarray) -> float:
        """Unbiased squared MMD of features [N,D] to the reference; kernel_distance's where it has one estimate."""
        return KernelResampler(features, self).distance(np.ones(len(features), dtype=np.int64))


class KernelResampler:
    """Unbiased kernel distances (see kernel.py) of parts of features [N,D]; memory is that of one [N,N] matrix.

    Two draws of the same image are no pair: they would say how alike an image is to itself.
    """

    def __init__(self, features: Tensor | np.ndarray, reference: KernelReference) -> None:
        """UserError below two images or for another dimension."""
        x = torch.as_tensor(features).double()
        self.n, dim = x.shape
        if self.n < 2:
            raise UserError(f"a kernel distance needs at least 2 images in each set, got {self.n}")
        if dim != reference.features.shape[1]:
            raise UserError(f"{dim} features cannot be compared with {reference.features.shape[1]}")
        self._pairs = cubic_kernel(x, x).fill_diagonal_(0).numpy()
        self._across = cubic_kernel(x, reference.features).mean(dim=1).numpy()
        self._reference = reference.within

    def distance(self, counts: np.ndarray) -> float:
        """Of the set in which image i occurs counts[i] times, int [N]; it may be slightly negative."""
        weights, n = counts.astype(np.float64), int(counts.sum())
        pairs = n**2 - float(weights @ weights)
        return float(weights @ self._pairs @ weights / pairs + self._reference - 2 * (weights @ self._across) / n)

    def influence(self) -> np.ndarray:
        """What each image adds to n times the distance, to first order and up to a constant; [n]."""
        return 2 * (self._pairs.sum(axis=1) / (self.n - 1) - self._across)


SetReference = FrechetReference | KernelReference


def reference_for(features: Tensor, n: int) -> SetReference:
    """By which distance n images are best compared with features [M,D]: kernel where either set is below D images."""
    few = min(n, len(features)) < features.shape[1]
    return KernelReference(features) if few else FrechetReference(FrechetStatistics.of(features))


def measure_of(reference: SetReference) -> str:
    """ "kid" or "frechet"."""
    return "kid" if isinstance(reference, KernelReference) else "frechet"


def resampler_for(features: Tensor | np.ndarray, reference: SetReference) -> Distances:
    """The resampler of the reference's kind of distance."""
    if isinstance(reference, KernelReference):
        return KernelResampler(features, reference)
    return Resampler(features, reference)
