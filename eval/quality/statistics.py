"""The `statistics` measurement: an image set's statistics on disk, to compare others with."""

import time
from typing import Any

from eval.quality.collect import collect
from eval.quality.config import StatisticsConfig
from eval.quality.metric import Part
from eval.quality.metrics import described
from eval.quality.run import open_cache, open_networks
from robust_models import UserError, open_images
from robust_models.features.extractor import check_images
from robust_models.metrics import write_statistics
from robust_models.runtime.command import Summary
from robust_models.runtime.distributed import join
from robust_models.runtime.version import versions


def run_statistics(config: StatisticsConfig) -> dict[str, Any] | None:
    """Writes the Frechet statistics of an image set to config.out and says what they are, ready for JSON.

    None on the ranks of a torchrun job that only helped the first one.
    """
    started = time.perf_counter()
    if config.out.is_dir() or (config.out.exists() and config.out.samefile(config.images)):
        raise UserError(
            f"out: {config.out} is {'a folder' if config.out.is_dir() else 'the image set itself'}; name a new .npz"
        )
    with join() as ranks:
        features, *more = open_networks(config, ranks)
        if more:
            raise UserError(f"features: {config.features} are several; statistics are of one")
        images = open_images(config.images)
        check_images(images, features)
        parts: tuple[Part, ...] = ("frechet", "spatial") if features.spatial_dim else ("frechet",)
        cache = open_cache(config.cache)
        collected = collect(images, features, parts, batch_size=config.batch_size, ranks=ranks, cache=cache)
        if collected is not None:
            assert collected.frechet is not None
            write_statistics(
                config.out,
                collected.frechet,
                features=features.name,
                protocol=features.protocol,
                sha256=features.source.sha256,
                spatial=collected.spatial,
            )
    if not ranks.is_first:
        return None
    return {
        "n_images": len(images),
        "features": features.name,
        **described(features),
        "images": str(config.images),
        "out": str(config.out),
        "versions": versions("torch-fidelity", "timm"),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def format_statistics(summary: Summary) -> str:
    """What was written, and of what."""
    return (
        f"{summary['out']}: mean and covariance of {summary['dim']} features in {summary['features']} "
        f"(protocol {summary['protocol']}), N = {summary['n_images']}"
    )
