"""The energy at which an image needs no further steps: as a file records it, as given, or of real images.

The energy of an image is -logsumexp of its logits: the lower, the more a classifier that was trained to generate takes
it for a real one. The energies of several classifiers are averaged.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refine.method import find_loss
from refine.network import images_first
from robust_models.classifier import Description
from robust_models.errors import UserError
from robust_models.images import ImageSet, open_images

MEDIAN = "median"
Logits = Callable[
    [Tensor], Tensor
]  # images [n,3,H,W] as they are stored -> [n,classes], or [n,K,classes] of K classifiers


def recorded_level(descriptions: Sequence[Description]) -> float:
    """The median energy of real images that the files state, averaged. UserError where one does not."""
    levels = []
    for description in descriptions:
        if description.generation is None:
            raise UserError(
                f"stop_energy: {MEDIAN}, but the file of the {description.arch} records no energies, as it was not "
                "trained to generate; give a number, or real images whose median is measured"
            )
        levels.append(description.generation.median_energy)
    return sum(levels) / len(levels)


def open_real(stop_energy: str) -> ImageSet:
    """The real images that --stop-energy names. UserError where it names none."""
    try:
        return open_images(stop_energy)
    except UserError as error:
        raise UserError(f"stop_energy: neither {MEDIAN} nor a number, and no images: {error}") from error


def measured_level(images: ImageSet, logits: Logits, block: int) -> float:
    """The median energy of the images, `block` of them at a time."""
    energy = find_loss("energy")
    parts = [logits(x) for _, x in images.batches(block)]
    unused = torch.zeros(0, dtype=torch.int64)
    return float(torch.cat([energy(images_first(part), unused) for part in parts]).median())
