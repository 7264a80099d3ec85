"""Where an image needs no further steps: at an energy, a confidence or a distance that real images have.

The energy of an image is -logsumexp of its logits: the lower, the more a classifier that was trained to generate takes
it for a real one. Its confidence is the probability of its target; of real images, that of the class they seem to be.
Its distance is that of its features from the mean of its class. What several classifiers say is averaged.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refine.method import ClassMeans, doubt, find_loss
from refine.network import consensus, images_first
from robust_models.classifier import Description
from robust_models.errors import UserError
from robust_models.images import ImageSet, open_images

MEDIAN = "median"
STOPS = ("stop_energy", "stop_confidence", "stop_distance")  # settings that may name real images
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


def open_real(source: str, field: str) -> ImageSet:
    """The real images that --stop-energy, --stop-confidence or --stop-distance names. UserError where it names none."""
    try:
        return open_images(source)
    except UserError as error:
        known = {"stop_energy": f"neither {MEDIAN} nor a number, and ", "stop_confidence": "no number, and "}
        raise UserError(f"{field}: {known.get(field, '')}no images: {error}") from error


def measured_level(images: ImageSet, logits: Logits, block: int, field: str) -> float:
    """The median energy of the images, or their median confidence, `block` of them at a time."""
    parts = [images_first(logits(x)) for _, x in images.batches(block)]
    guesses = [consensus(part).argmax(dim=1) for part in parts]
    measure = find_loss("energy" if field == "stop_energy" else doubt)
    level = float(torch.cat([measure(part, y) for part, y in zip(parts, guesses, strict=True)]).median())
    return level if field == "stop_energy" else 1 - level


def measured_means(images: ImageSet, seen: Callable[[Tensor], tuple[Tensor, list[Tensor]]], block: int) -> ClassMeans:
    """Of real images, `block` at a time. seen: images as they are stored -> logits, and features of each classifier."""
    logits, features = zip(*(seen(x) for _, x in images.batches(block)), strict=True)
    return ClassMeans.of_real(
        torch.cat([consensus(images_first(part)) for part in logits]),
        [torch.cat(parts) for parts in zip(*features, strict=True)],
    )
