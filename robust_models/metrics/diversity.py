"""How different images are: from each other within a class, and from the real ones that they could copy."""

from typing import NamedTuple

import torch
from torch import Tensor

from robust_models.metrics.precision_recall import ROWS, exact_squared, squared_distances, squared_radii

MOST_OF_A_CLASS = 1000  # rows of each class that are compared with each other, spread over the set


def within_class_distance(features: Tensor, labels: Tensor) -> float:
    """The mean distance of two different rows of features [N,D] that share a label [N], each class counting alike.

    Of a class with more than MOST_OF_A_CLASS rows as many are taken. ValueError where no class has two.
    """
    means = []
    for label in labels.unique():
        rows = features[labels == label]
        rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), MOST_OF_A_CLASS)).round().long()].double()
        if len(rows) > 1:
            means.append(torch.pdist(rows).mean())
    if not means:
        raise ValueError(f"no two of {len(features)} images are of one class")
    return float(torch.stack(means).mean())


class Nearest(NamedTuple):
    """The nearest real image of each image."""

    which: Tensor  # [N] of the real ones
    distance: Tensor  # [N] to it
    spacing: Tensor  # [N] from it to the nearest other real one

    @property
    def authenticity(self) -> float:
        """Share of images farther from their nearest real one than that is from another. Alaa et al. 2022: 2102.08921.

        A set of copies has 0.
        """
        return float((self.distance > self.spacing).double().mean())


def nearest(features: Tensor, reference: Tensor) -> Nearest:
    """Of features [N,D] among reference [M,D], M at least 2. Distances are float64, those of copies exactly 0."""
    if len(reference) < 2:
        raise ValueError(f"spacing needs 2 real images, got {len(reference)}")
    centre = reference.double().mean(dim=0)  # distances do not change, their rounding does
    features, reference = features.double() - centre, reference.double() - centre
    parts = [squared_distances(rows, reference)[0].argmin(dim=1) for rows in features.split(ROWS)]
    index = torch.cat(parts)
    met, place = index.unique(return_inverse=True)
    spacing = torch.cat([squared_radii(rows, reference, 1) for rows in reference[met].split(ROWS)]).sqrt()
    return Nearest(index, exact_squared(features, reference[index]).sqrt(), spacing[place])
