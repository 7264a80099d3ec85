"""Precision and recall of a set of images: how many look real, and how much of the real is there.

Kynkäänniemi et al. 2019, arXiv:1904.06991.
"""

import torch
from torch import Tensor

ROWS = 512  # of the distance matrix at a time: memory is ROWS * N float64
SPARE = 8  # neighbours looked at beyond the k-th, whose order the fast product may have rounded


def precision_recall(features: Tensor, reference: Tensor, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of features [N,D] against reference [M,D], each more than k rows.

    Precision: the share of `features` inside the reference's manifold, the union of balls about its points that reach
    to each point's k-th nearest neighbour; recall: the other way round. Distances are float64 and compared with `<=`.
    """
    centre = reference.double().mean(dim=0)  # distances do not change, their rounding does
    features, reference = features.double() - centre, reference.double() - centre
    real, met = inside_manifold(features, reference, k), inside_manifold(reference, features, k)
    return float(real.double().mean()), float(met.double().mean())


def inside_manifold(points: Tensor, manifold: Tensor, k: int) -> Tensor:
    """Which of points [N,D] lie in at least one ball about a row of manifold [M,D]; bool [N]."""
    if len(manifold) <= k:
        raise ValueError(f"a manifold needs more than {k} points, got {len(manifold)}")
    radii = torch.cat([squared_radii(rows, manifold, k) for rows in manifold.split(ROWS)])
    return torch.cat([_inside(rows, manifold, radii) for rows in points.split(ROWS)])


def squared_radii(rows: Tensor, manifold: Tensor, k: int) -> Tensor:
    """Squared distance of each of the manifold's rows [n,D] to its k-th neighbour, itself (at 0) not counted; [n]."""
    near = squared_distances(rows, manifold)[0].topk(min(k + 1 + SPARE, len(manifold)), dim=1, largest=False).indices
    exact = exact_squared(rows[:, None], manifold[near])
    return exact.kthvalue(k + 1, dim=1).values


def _inside(rows: Tensor, manifold: Tensor, radii: Tensor) -> Tensor:
    """Whether each of rows [n,D] lies in a ball; what rounding leaves open is computed again from the differences."""
    squared, rounding = squared_distances(rows, manifold)
    inside = (squared <= radii - rounding).any(dim=1)
    unclear = ((squared - radii).abs() <= rounding) & ~inside[:, None]
    for row in unclear.any(dim=1).nonzero().flatten().tolist():
        there = unclear[row].nonzero().flatten()
        inside[row] = bool((exact_squared(rows[row], manifold[there]) <= radii[there]).any())
    return inside


def squared_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [n,m] of x [n,D] and y [m,D] by one matrix product, and a bound of their rounding errors."""
    sizes = (x**2).sum(dim=1)[:, None] + (y**2).sum(dim=1)
    return sizes - 2 * x @ y.T, sizes * (4 * x.shape[1] * torch.finfo(torch.float64).eps)


def exact_squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of x to y [...,D], from the differences: 0 for equal rows."""
    return ((y - x) ** 2).sum(dim=-1)
