"""The two sets of a measurement: opened, refused where numbers would not be what they are called, and passed over."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from eval.quality.cache import StatisticsCache
from eval.quality.collect import collect
from eval.quality.metric import Options, Part, Side
from eval.quality.metrics import METRICS, extras_of, parts_needed
from robust_models import ImageSet, UserError, open_images
from robust_models.features import FeatureExtractor
from robust_models.features.extractor import check_images, check_stored
from robust_models.images import Add, to_float, to_u8
from robust_models.images.arrays import describe
from robust_models.images.image_set import Numbered
from robust_models.images.pixels import check_range
from robust_models.metrics import StoredStatistics, read_statistics
from robust_models.metrics.inception_score import blocks, shuffled_splits
from robust_models.runtime.distributed import Ranks

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
    images: Images, reference: Images | None, options: Options, features: FeatureExtractor, *, own: bool = False
) -> tuple[Opened, Opened]:
    """Both sets. UserError where one does not fit the features, the metrics or the other.

    own: the features are some metrics' own, not those of --features, which stored statistics are of.
    """
    ours = _open(images, options, features, own, is_reference=False)
    if reference is None:
        return ours, Opened(is_reference=True)
    theirs = _open(reference, options, features, own, is_reference=True)
    if ours.images is not None and theirs.images is not None and ours.images.size != theirs.images.size:
        (height, width), (real_height, real_width) = ours.images.size, theirs.images.size
        raise UserError(
            f"images: {width}x{height}, but the reference has {real_width}x{real_height}; "
            "bring both to one size first: how that is done moves the score"
        )
    return ours, theirs


def open_originals(given: Images) -> ImageSet:
    """The images before they were refined, of any depth. UserError where they are none."""
    return open_images(Path(given)) if isinstance(given, str | os.PathLike) else _in_memory(given, "originals")


def _open(given: Images, options: Options, features: FeatureExtractor, own: bool, *, is_reference: bool) -> Opened:
    field = "reference" if is_reference else "images"
    needs = parts_needed(options, of_reference=is_reference)
    if not isinstance(given, str | os.PathLike):
        return Opened(is_reference, _checked(_in_memory(given, field), features))
    path = Path(given)
    stored = read_statistics(path)
    if stored is None:
        return Opened(is_reference, _checked(open_images(path), features))
    if not own:
        check_stored(stored, features)
    if "spatial" in needs and stored.spatial is None:
        raise UserError(f"{field}: {path} holds no mu_s and sigma_s, which sfid needs; give the images")
    wish = _beyond_statistics(options, needs, own, is_reference=is_reference)
    if wish is None:
        return Opened(is_reference, stored=stored)
    try:
        images = open_images(path)
    except UserError as error:
        raise UserError(f"{field}: {path} holds statistics only; {wish} needs the images themselves") from error
    return Opened(is_reference, _checked(images, features), None if own else stored)


def _beyond_statistics(options: Options, needs: set[Part], own: bool, *, is_reference: bool) -> str | None:
    """The first thing asked for that stored statistics cannot give; None where they can give all."""
    if not needs or not (own or needs & {"rows", "score"}):
        return None
    wished = [
        name
        for name in options.metrics
        if own or {"rows", "score"} & set(METRICS[name].reference_needs if is_reference else METRICS[name].needs)
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


ALONE = Ranks()
MOST_REAL = 10_000  # reference images whose features are kept beside their statistics, for the floor of a distance


@dataclass(frozen=True)
class Pass:
    """One feature space and what is measured in it."""

    features: FeatureExtractor
    options: Options  # of these metrics alone
    own: bool  # the metrics' own features, not those of --features, which stored statistics are of


@dataclass(frozen=True)
class Machine:
    """Where the passes run, how much of a set at once, and where features are kept."""

    batch_size: int
    device: torch.device
    ranks: Ranks = ALONE
    cache: StatisticsCache | None = None


def side(opened: Opened, one: Pass, machine: Machine) -> Side:
    """What the metrics of a pass need of one set, on the first rank; stored statistics spare a pass."""
    images, stored = opened.images, opened.stored
    parts = parts_needed(one.options, of_reference=opened.is_reference)
    if stored is not None:
        parts -= {"frechet", "spatial"}
    elif opened.is_reference and "frechet" in parts and images is not None and len(images) <= MOST_REAL:
        parts.add("rows")
    collected = None
    if parts and images is not None:
        split = _splits(one.features.protocol, images) if "score" in parts else None
        collected = collect(
            images,
            one.features,
            parts,
            split=split,
            batch_size=machine.batch_size,
            ranks=machine.ranks,
            cache=machine.cache,
        )
    return Side(
        frechet=stored or (collected and collected.frechet),
        spatial=(stored and stored.spatial) or (collected and collected.spatial),
        score=collected and collected.score,
        rows=collected and collected.rows,
        labels=None if images is None else images.labels,
        class_names=None if images is None else images.class_names,
        pixels=images,
    )


def check_splits(protocol: str, opened: Opened) -> None:
    """UserError where a split of the Inception Score would hold a single image, whose score is always 1."""
    if opened.images is None:
        return
    sizes = np.bincount(_splits(protocol, opened.images))
    if sizes.min() < 2:
        raise UserError(
            f"metrics: is needs 2 images or more in each of its {len(sizes)} splits (thousands, to mean something); "
            f"{opened.images.path} has {len(opened.images)}"
        )


def _splits(protocol: str, images: ImageSet) -> np.ndarray:
    """The Inception Score's split of each image."""
    return blocks(len(images)) if protocol == "adm" else shuffled_splits(len(images))
