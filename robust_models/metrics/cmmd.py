"""CMMD: how far two sets are apart in CLIP's embeddings (Jayasumana et al. 2024, arXiv:2401.09603)."""

import torch
from torch import Tensor

from robust_models.errors import UserError

SIGMA = 10.0
SCALE = 1000.0
ROWS = 1024  # of the kernel matrix at a time


def cmmd(embeddings: Tensor, reference: Tensor) -> float:
    """1000 times the squared MMD of a Gaussian kernel, sigma 10, of embeddings [N,D] and [M,D], each row of length 1.

    Unbiased, so it may be slightly negative; the authors' code takes pairs of an image with itself along, which adds
    about 6 / N. Rows are normalised here. UserError below two images or for another dimension.
    """
    if embeddings.shape[1] != reference.shape[1]:
        raise UserError(f"{embeddings.shape[1]} features cannot be compared with {reference.shape[1]}")
    n, m = len(embeddings), len(reference)
    if min(n, m) < 2:
        raise UserError(f"a CMMD needs at least 2 images in each set, got {n} and {m}")
    x, y = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (embeddings, reference))
    within = (_sum(x, x) - n) / (n * (n - 1)) + (_sum(y, y) - m) / (m * (m - 1))
    return SCALE * (within - 2 * _sum(x, y) / (n * m))


def _sum(x: Tensor, y: Tensor) -> float:
    """Of the kernel over all pairs; |x - y|^2 = 2 - 2 x.y on the sphere."""
    parts = [torch.exp((rows @ y.T - 1) / SIGMA**2).sum() for rows in x.split(ROWS)]
    return float(torch.stack(parts).sum())
