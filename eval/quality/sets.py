"""The two sets of a quality measurement: opened, and refused where their numbers would not be what they are called."""

from dataclasses import dataclass
from pathlib import Path

from eval.quality.config import QualityConfig
from eval.quality.measures import NEEDS
from robust_models import ImageSet, UserError, open_images
from robust_models.features import FeatureExtractor
from robust_models.features.statistics import check_images, check_stored
from robust_models.metrics import StoredStatistics, read_statistics


@dataclass(frozen=True)
class Opened:
    """An image set, stored statistics, or both in one file (guided-diffusion's reference batches); or not given."""

    is_reference: bool
    images: ImageSet | None = None
    stored: StoredStatistics | None = None

    @property
    def n(self) -> int | None:
        """Images that the Frechet statistics are of; None where the file does not tell."""
        if self.stored is not None:
            return self.stored.n
        return None if self.images is None else len(self.images)


def open_sets(config: QualityConfig, extractor: FeatureExtractor) -> tuple[Opened, Opened]:
    """(images, reference). UserError where one does not fit the features, the metrics or the other."""
    images = _open(config.images, config, extractor, is_reference=False)
    if config.reference is None:
        return images, Opened(is_reference=True)
    reference = _open(config.reference, config, extractor, is_reference=True)
    if images.images is not None and reference.images is not None and images.images.size != reference.images.size:
        (height, width), (real_height, real_width) = images.images.size, reference.images.size
        raise UserError(
            f"images: {width}x{height}, but the reference has {real_width}x{real_height}; "
            "bring both to one size first: how that is done moves the score"
        )
    return images, reference


def _open(path: Path, config: QualityConfig, extractor: FeatureExtractor, *, is_reference: bool) -> Opened:
    field = "reference" if is_reference else "images"
    needs = {part for metric in config.metric_names for part in NEEDS[metric][is_reference]}
    if "score" in needs and extractor.num_classes is None:
        raise UserError(
            f"metrics: is needs the logits of a whole network, which {extractor.name} has not; use --features inception"
        )
    if "spatial" in needs and extractor.spatial_dim is None:
        raise UserError(f"metrics: sfid needs Inception's spatial features, which {extractor.name} has not")
    stored = read_statistics(path)
    if stored is None:
        images = open_images(path)
        _check(images, extractor)
        return Opened(is_reference, images)
    check_stored(stored, extractor)
    if "spatial" in needs and stored.spatial is None:
        raise UserError(f"{field}: {path} holds no mu_s and sigma_s, which sfid needs; give the images")
    own_pass = needs & {"rows", "score"} or config.per_class or "fd-dinov2" in config.metric_names
    if own_pass or ((config.bootstrap or config.infinite) and not is_reference):
        try:
            images = open_images(path)
        except UserError as error:
            raise UserError(
                f"{field}: {path} holds statistics only; {_wish(config)} needs the images themselves"
            ) from error
        _check(images, extractor)
        return Opened(is_reference, images, stored)
    return Opened(is_reference, stored=stored)


def _wish(config: QualityConfig) -> str:
    """The first thing asked for that statistics cannot give."""
    named = [metric for metric in config.metric_names if metric in ("is", "kid", "prc", "fd-dinov2")]
    flags = [name for name in ("per_class", "bootstrap", "infinite") if getattr(config, name)]
    return (named + flags)[0]


def _check(images: ImageSet, extractor: FeatureExtractor) -> None:
    if images.depth != "uint8":
        raise UserError(
            f"{images.path}: images are {images.depth}; scores are of 8-bit images: save them as uint8 first"
        )
    check_images(images, extractor)
