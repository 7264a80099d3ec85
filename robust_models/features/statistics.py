"""Image sets behind a feature space: checked, then summed up."""

from tqdm import tqdm

from robust_models.errors import UserError
from robust_models.features.extractor import FeatureExtractor
from robust_models.features.protocols import same_pixels
from robust_models.images import ImageSet
from robust_models.metrics import FrechetStatistics, StoredStatistics


def image_statistics(images: ImageSet, extractor: FeatureExtractor, batch_size: int = 100) -> FrechetStatistics:
    """Float64 statistics of the features of every image; memory does not grow with their number."""
    statistics = FrechetStatistics(extractor.dim)
    with tqdm(total=len(images), desc=images.path.name, unit="img", mininterval=0.5) as bar:
        for part, x_u8 in images.batches(batch_size):
            statistics.update(extractor(x_u8))
            bar.update(part.stop - part.start)
    return statistics


def check_images(images: ImageSet, extractor: FeatureExtractor) -> None:
    """UserError where the images are not of the size that the extractor takes, or fewer than 2."""
    height, width = images.size
    side = extractor.image_size
    if side is not None and (height, width) != (side, side):
        raise UserError(f"{images.path}: images are {width}x{height}; {extractor.name} takes {side}x{side}")
    if len(images) < 2:
        raise UserError(f"{images.path}: 1 image; a Frechet distance needs at least 2 in each set")


def check_stored(stored: StoredStatistics, extractor: FeatureExtractor) -> None:
    """UserError for statistics of other features: they would give a number all the same, which must not be shown."""
    classifiers = extractor.name.startswith("classifier:") and (stored.features or "").startswith("classifier:")
    same_file = stored.sha256 == extractor.source.sha256
    # A classifier is its file, whatever path it had; Inception's files hold one network, whole or in part.
    alike = same_file if classifiers and stored.sha256 else stored.features in (None, extractor.name)
    if not alike:
        other = " of another file" if stored.features == extractor.name else ""
        raise UserError(f"{stored.path}: statistics of {stored.features}{other}, but --features is {extractor.name}")
    alike = stored.protocol in (None, extractor.protocol) or same_pixels(stored.protocol, extractor.protocol)
    if not alike:
        raise UserError(f"{stored.path}: statistics of protocol {stored.protocol}, but this is {extractor.protocol}")
    if len(stored.mean) != extractor.dim:
        raise UserError(
            f"{stored.path}: statistics of {len(stored.mean)} features; {extractor.name} has {extractor.dim}"
        )
