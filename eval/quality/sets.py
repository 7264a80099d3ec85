"""The two sets of a quality measurement: opened, and refused where their numbers would not be what they are called."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from eval.quality.metric import Options, Part
from eval.quality.metrics import METRICS, extras_of, parts_needed
from robust_models import ImageSet, UserError, open_images
from robust_models.features import FeatureExtractor
from robust_models.features.extractor import check_images, check_stored
from robust_models.images import Add, to_float, to_u8
from robust_models.images.arrays import describe
from robust_models.images.image_set import Numbered
from robust_models.images.pixels import check_range
from robust_models.metrics import StoredStatistics, read_statistics

Images = str | os.PathLike[str] | np.ndarray | Tensor | ImageSet  # whatever image_quality takes as a set


@dataclass(frozen=True)
class Opened:
    """An image set, stored statistics, or both in one file (guided-diffusion's reference batches); or not given."""

    is_reference: bool
    images: ImageSet | None = None
    stored: StoredStatistics | None = None

    @property
    def n(self) -> int | None:
        """Images that the Frechet statistics are of; None where the file does not say."""
        if self.stored is not None:
            return self.stored.n
        return None if self.images is None else len(self.images)


def open_sets(
    images: Images, reference: Images | None, options: Options, features: FeatureExtractor
) -> tuple[Opened, Opened]:
    """Both sets. UserError where one does not fit the features, the metrics or the other."""
    ours = _open(images, options, features, is_reference=False)
    if reference is None:
        return ours, Opened(is_reference=True)
    theirs = _open(reference, options, features, is_reference=True)
    if ours.images is not None and theirs.images is not None and ours.images.size != theirs.images.size:
        (height, width), (real_height, real_width) = ours.images.size, theirs.images.size
        raise UserError(
            f"images: {width}x{height}, but the reference has {real_width}x{real_height}; "
            "bring both to one size first: how that is done moves the score"
        )
    return ours, theirs


def _open(given: Images, options: Options, features: FeatureExtractor, *, is_reference: bool) -> Opened:
    field = "reference" if is_reference else "images"
    needs = parts_needed(options, None, of_reference=is_reference)
    if "score" in needs and features.num_classes is None:
        raise UserError(
            f"metrics: is needs the logits of a whole network, which {features.name} has not; use --features inception"
        )
    if "spatial" in needs and features.spatial_dim is None:
        raise UserError(f"metrics: sfid needs Inception's spatial features, which {features.name} has not")
    if not isinstance(given, str | os.PathLike):
        return Opened(is_reference, _checked(_in_memory(given, field), features))
    path = Path(given)
    stored = read_statistics(path)
    if stored is None:
        return Opened(is_reference, _checked(open_images(path), features))
    check_stored(stored, features)
    if "spatial" in needs and stored.spatial is None:
        raise UserError(f"{field}: {path} holds no mu_s and sigma_s, which sfid needs; give the images")
    wish = _beyond_statistics(options, needs, is_reference=is_reference)
    if wish is None:
        return Opened(is_reference, stored=stored)
    try:
        images = open_images(path)
    except UserError as error:
        raise UserError(f"{field}: {path} holds statistics only; {wish} needs the images themselves") from error
    return Opened(is_reference, _checked(images, features), stored)


def _beyond_statistics(options: Options, needs: set[Part], *, is_reference: bool) -> str | None:
    """The first thing asked for that stored statistics cannot give; None where they can give all."""
    own_pass = [name for name in options.metrics if METRICS[name].own_features is not None]
    if not own_pass and not needs & {"rows", "score"}:
        return None
    metrics = [METRICS[name] for name in options.metrics]
    wished = [
        metric.name
        for metric in metrics
        if metric.name in own_pass or {"rows", "score"} & set(metric.reference_needs if is_reference else metric.needs)
    ]
    return [*wished, *extras_of(options)][0]


def _checked(images: ImageSet, features: FeatureExtractor) -> ImageSet:
    if images.depth != "uint8":
        raise UserError(
            f"{images.path}: images are {images.depth}; scores are of 8-bit images: save them as uint8 first"
        )
    check_images(images, features)
    return images


def _in_memory(given: np.ndarray | Tensor | ImageSet, field: str) -> ImageSet:
    """Pixels as an image set; floats in [0,1] are rounded to 8 bits, as an image file would hold them."""
    if isinstance(given, ImageSet):
        return given
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    found = describe(array.shape, array.dtype, kind="array", source=field)
    if array.dtype.kind == "f":
        check_range(lambda start, stop: array[start:stop], len(array), array[0].nbytes, source=field)
    return MemoryImages(
        path=Path(field),
        names=Numbered(len(array)),
        size=found.size,
        labels=None,
        class_names=None,
        about=found.about,
        notes=found.notes,
        pixels=found.layout.as_rgb(array),
    )


@dataclass(frozen=True, kw_only=True)
class MemoryImages(ImageSet):
    """Images that a program holds, [N,3,H,W] of uint8, uint16 or floats in [0,1]; read as uint8."""

    pixels: np.ndarray

    kind: ClassVar[str] = "array"
    suffixes: ClassVar[tuple[str, ...]] = ()

    def read(self, start: int, stop: int) -> Tensor:
        """uint8 [stop-start,3,H,W], rounded half to even."""
        return to_u8(to_float(torch.from_numpy(np.ascontiguousarray(self.pixels[start:stop]))))

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        raise NotImplementedError("images in memory have no kind of file to be written as")
