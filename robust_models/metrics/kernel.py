"""Kernel distance of two sets of features: unbiased squared MMD of a cubic kernel (Binkowski et al. 2018).

It is the KID only in the 2048 features of the 2015-12-05 Inception. Unbiased: it may be slightly negative.
"""

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.metrics.half_splits import LEAST_IMAGES, half_split_interval, half_splits

SUBSETS = 100
SUBSET_SIZE = 1000
ROWS = 1024  # of the kernel matrix at a time
SEED = 2020  # torch-fidelity's


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> tuple[float, float]:
    """(mean, standard deviation with ddof 0) over seeded subsets of features [N,D] and reference [M,D].

    The kernel is (x.y / D + 1)^3 (arXiv:1801.01401); subsets hold subset_size images, or as many as the smaller set
    has. They are drawn as torch-fidelity draws them. Sums in float64: the distance is a small difference of large
    means. Where both sets are no larger than a subset, there is one estimate from all images, whose standard deviation
    is NaN. UserError below two images or for other dimensions.
    """
    n, m = len(features), len(reference)
    size = min(subset_size, n, m)
    if size < 2:
        raise UserError(f"a kernel distance needs at least 2 images in each set, got {n} and {m}")
    if features.shape[1] != reference.shape[1]:
        raise UserError(f"{features.shape[1]} features cannot be compared with {reference.shape[1]}")
    if max(n, m) <= subset_size:
        return _squared_mmd(features.double(), reference.double()), float("nan")
    rng = np.random.RandomState(SEED)
    found = np.empty(subsets)
    for i in range(subsets):
        x = features[torch.from_numpy(rng.choice(n, size, replace=False)).to(features.device)]
        y = reference[torch.from_numpy(rng.choice(m, size, replace=False)).to(reference.device)]
        found[i] = _squared_mmd(x.double(), y.double())
    return float(found.mean()), float(found.std())


def kernel_interval(
    score: float, features: Tensor, reference: Tensor, splits: int, *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval about `score` of the expected kernel distance of other sets [N,D] to this reference [M,D].

    From half splits of the features, which see the kernel matrix once, ROWS of it at a time (see half_splits.py). The
    reference's own pairs are the same for every set. UserError below four images.
    """
    n = len(features)
    if n < LEAST_IMAGES:
        raise UserError(f"an interval of a distance needs at least {LEAST_IMAGES} images, got {n}")
    x, y = features.double(), reference.double()
    first = torch.from_numpy(half_splits(n, splits, seed=seed)).to(x.device, x.dtype).T
    sizes = first.sum(dim=0)
    pairs_first, to_all, across = torch.zeros_like(sizes), [], []  # sums over pairs of the first half; over all, [N]
    for at in range(0, n, ROWS):
        rows = x[at : at + ROWS]
        kernel = cubic_kernel(rows, x)
        kernel[torch.arange(len(rows)), at + torch.arange(len(rows))] = 0  # no pair of an image with itself
        pairs_first += (first[at : at + ROWS] * (kernel @ first)).sum(dim=0)
        to_all.append(kernel.sum(dim=1))
        across.append(
            torch.cat([cubic_kernel(rows, part).sum(dim=1, keepdim=True) for part in y.split(ROWS)], 1).sum(1)
        )
    pairs, real = torch.cat(to_all), torch.cat(across) / len(y)
    pairs_second = pairs.sum() - 2 * pairs @ first + pairs_first
    halves = [
        (sums / (size * (size - 1)) - 2 * (real @ half) / size).cpu().numpy()
        for sums, size, half in ((pairs_first, sizes, first), (pairs_second, n - sizes, 1 - first))
    ]
    influence = 2 * (pairs / (n - 1) - real)
    return half_split_interval(score, halves[0], halves[1], influence=influence.cpu().numpy())


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    """Of x [n,D] and y [m,D]: mean kernel within each, an image with itself left out, less twice that across."""
    within = 0.0
    for rows in (x, y):
        kernel = cubic_kernel(rows, rows)
        within += float((kernel.sum() - kernel.diagonal().sum()) / (len(rows) * (len(rows) - 1)))
    return within - 2 * float(cubic_kernel(x, y).mean())


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3 of the rows of x [n,D] and y [m,D]; [n,m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3
