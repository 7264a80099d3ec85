"""Precision and recall of a set of images: how many look real, and how much of the real is there.

Kynkäänniemi et al. 2019, arXiv:1904.06991.
"""

import torch
from torch import Tensor

ROWS = 1024  # of the distance matrix at a time: memory is ROWS * N floats


def precision_recall(features: Tensor, reference: Tensor, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of features [N,D] against reference [M,D], each more than k rows.

    Precision: the share of `features` inside the reference's manifold, the union of balls about its points that reach
    to each point's k-th nearest neighbour; recall: the other way round. Distances in float32, compared with `<=`.
    """
    return _covered(features, reference, k), _covered(reference, features, k)


def _covered(points: Tensor, manifold: Tensor, k: int) -> float:
    """The share of points [N,D] that lie in at least one ball about a row of manifold [M,D]."""
    if len(manifold) <= k:
        raise ValueError(f"a manifold needs more than {k} points, got {len(manifold)}")
    points, manifold = points.float(), manifold.float()
    # The nearest neighbour of a point in its own set is itself, at distance 0.
    radii = torch.cat([torch.cdist(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(ROWS)])
    inside = [(torch.cdist(rows, manifold) <= radii).any(dim=1) for rows in points.split(ROWS)]
    return torch.cat(inside).float().mean().item()
