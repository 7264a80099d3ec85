"""The `quality` and `statistics` measurements: from image sets to a Frechet distance, or to statistics on disk."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.config import QualityConfig, StatisticsConfig
from eval.features import FeatureExtractor, open_features
from eval.metrics import FrechetStatistics, StoredStatistics, frechet_distance, read_statistics, write_statistics
from robust_models import ImageSet, UserError, open_images
from robust_models.runtime.device import pick_device


def run_quality(config: QualityConfig) -> dict[str, Any]:
    """Frechet distance between two image sets (or stored statistics), ready for JSON. UserError for bad input."""
    started = time.perf_counter()
    extractor = open_features(config.features, weights=config.weights, device=pick_device(config.device))
    opened = [_open(path, extractor) for path in (config.images, config.reference)]
    images, reference = (
        found if isinstance(found, StoredStatistics) else image_statistics(found, extractor, config.batch_size)
        for found in opened
    )
    frechet = frechet_distance(images, reference)
    return {
        "n_images": images.n,
        "n_reference": reference.n,
        "features": extractor.name,
        "frechet": frechet,
        **({"fid": frechet} if extractor.is_fid else {}),
        **_described(extractor),
        "images": str(config.images),
        "reference": str(config.reference),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def run_statistics(config: StatisticsConfig) -> dict[str, Any]:
    """Writes the Frechet statistics of an image set to config.out and says what they are, ready for JSON."""
    started = time.perf_counter()
    if config.out.is_dir() or (config.out.exists() and config.out.samefile(config.images)):
        raise UserError(
            f"out: {config.out} is {'a folder' if config.out.is_dir() else 'the image set itself'}; name a new .npz"
        )
    extractor = open_features(config.features, weights=config.weights, device=pick_device(config.device))
    images = open_images(config.images)
    _check_images(images, extractor)
    statistics = image_statistics(images, extractor, config.batch_size)
    write_statistics(
        config.out,
        statistics,
        features=extractor.name,
        protocol=extractor.protocol,
        sha256=extractor.source.sha256,
    )
    return {
        "n_images": statistics.n,
        "features": extractor.name,
        **_described(extractor),
        "images": str(config.images),
        "out": str(config.out),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def image_statistics(images: ImageSet, extractor: FeatureExtractor, batch_size: int = 100) -> FrechetStatistics:
    """Float64 statistics of the features of every image; memory does not grow with their number."""
    statistics = FrechetStatistics(extractor.dim)
    with tqdm(total=len(images), desc=images.path.name, unit="img", mininterval=0.5) as bar:
        for part, x_u8 in images.batches(batch_size):
            statistics.update(extractor(x_u8))
            bar.update(part.stop - part.start)
    return statistics


def _open(path: Path, extractor: FeatureExtractor) -> ImageSet | StoredStatistics:
    stored = read_statistics(path)
    if stored is not None:
        _check_stored(stored, extractor)
        return stored
    images = open_images(path)
    _check_images(images, extractor)
    return images


def _check_images(images: ImageSet, extractor: FeatureExtractor) -> None:
    height, width = images.size
    side = extractor.image_size
    if side is not None and (height, width) != (side, side):
        raise UserError(f"{images.path}: images are {width}x{height}; {extractor.name} takes {side}x{side}")
    if len(images) < 2:
        raise UserError(f"{images.path}: 1 image; a Frechet distance needs at least 2 in each set")


def _check_stored(stored: StoredStatistics, extractor: FeatureExtractor) -> None:
    """Statistics of other features give a number all the same: it must not be shown."""
    classifiers = extractor.name.startswith("classifier:") and (stored.features or "").startswith("classifier:")
    same_file = stored.sha256 == extractor.source.sha256
    # A classifier is its file, whatever path it had; Inception's files hold one network, whole or in part.
    alike = same_file if classifiers and stored.sha256 else stored.features in (None, extractor.name)
    if not alike:
        other = " of another file" if stored.features == extractor.name else ""
        raise UserError(f"{stored.path}: statistics of {stored.features}{other}, but --features is {extractor.name}")
    if stored.protocol not in (None, extractor.protocol):
        raise UserError(f"{stored.path}: statistics of protocol {stored.protocol}, but this is {extractor.protocol}")
    if len(stored.mean) != extractor.dim:
        raise UserError(
            f"{stored.path}: statistics of {len(stored.mean)} features; {extractor.name} has {extractor.dim}"
        )


def _described(extractor: FeatureExtractor) -> dict[str, Any]:
    kind = "checkpoint" if extractor.name.startswith("classifier:") else "weights"
    return {"dim": extractor.dim, "protocol": extractor.protocol, kind: asdict(extractor.source)}
