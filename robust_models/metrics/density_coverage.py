"""Density and coverage: how well the real images' neighbourhoods are filled, and how many of them are met at all.

Naeem et al. 2020, arXiv:2002.09797. Unlike precision and recall they hang on no single outlier of the real images.
"""

import torch
from torch import Tensor

from robust_models.metrics.precision_recall import ROWS, exact_squared, squared_distances, squared_radii


def density_coverage(features: Tensor, reference: Tensor, *, k: int = 5) -> tuple[float, float]:
    """(density, coverage) of features [N,D] against reference [M,D], which has more than k rows.

    About each reference point lies a ball that reaches to its k-th nearest neighbour among the reference. Density: in
    how many balls a row of `features` lies, over k; 1 where the sets are alike, more where they crowd. Coverage: the
    share of balls that hold a row of `features`. Distances are float64 and compared with `<=`, so that a copy of a
    point lies in its ball; the authors' code has `<`, which differs for duplicates alone.
    """
    centre = reference.double().mean(dim=0)  # distances do not change, their rounding does
    features, reference = features.double() - centre, reference.double() - centre
    if len(reference) <= k:
        raise ValueError(f"neighbourhoods need more than {k} points, got {len(reference)}")
    radii = torch.cat([squared_radii(rows, reference, k) for rows in reference.split(ROWS)])
    balls, met = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows in features.split(ROWS):
        inside = inside_each(rows, reference, radii)
        balls += int(inside.sum())
        met |= inside.any(dim=0)
    return balls / (k * len(features)), float(met.double().mean())


def inside_each(rows: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Whether each of rows [n,D] lies in each ball, [n,M]; what rounding leaves open is computed from differences."""
    found, rounding = squared_distances(rows, centres)
    inside = found <= radii
    row, ball = ((found - radii).abs() <= rounding).nonzero(as_tuple=True)
    for part in torch.arange(len(row)).split(ROWS):
        inside[row[part], ball[part]] = exact_squared(rows[row[part]], centres[ball[part]]) <= radii[ball[part]]
    return inside
