"""The `quality` and `statistics` measurements: from image sets to the field's numbers, or to statistics on disk."""

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.quality.cache import StatisticsCache, user_cache
from eval.quality.collect import Part, collect
from eval.quality.config import QualityConfig, StatisticsConfig
from eval.quality.measures import NEEDS, Options, Side, measure
from eval.quality.sets import Opened, open_sets
from robust_models import UserError, open_images
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.statistics import check_images
from robust_models.metrics import write_statistics
from robust_models.metrics.inception_score import blocks, shuffled_splits
from robust_models.runtime.distributed import Ranks, join


def run_quality(config: QualityConfig) -> dict[str, Any]:
    """Every metric asked for, of one image set or between two, ready for JSON. UserError for bad input.

    Under torchrun the ranks share the images and only the first returns; the others leave (SystemExit, status 0).
    """
    started = time.perf_counter()
    with join() as ranks:
        extractor = _open_network(config, ranks)
        opened = open_sets(config, extractor)
        wished = "fd-dinov2" in config.metric_names
        dinov2 = open_features("dinov2", device=ranks.device(config.device)) if wished else None
        cache = _cache(config.cache)
        sides = [_side(config, one, extractor, ranks, cache) for one in opened]
        found = {}
        if ranks.is_first:
            options = Options(
                extractor.protocol, extractor.is_fid, config.per_class, config.bootstrap, config.infinite, config.seed
            )
            found = measure(config.metric_names, sides[0], sides[1], options)
        if dinov2 is not None:
            found |= _dinov2(dinov2, opened, config.batch_size, ranks, cache)
    if not ranks.is_first:
        sys.exit(0)
    images, reference = opened
    return {
        "n_images": images.n,
        "n_reference": reference.n,
        "features": extractor.name,
        **found,
        **_described(extractor),
        "metrics": list(config.metric_names),
        "images": str(config.images),
        "reference": None if config.reference is None else str(config.reference),
        "seed": config.seed,
        "versions": _versions(),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def run_statistics(config: StatisticsConfig) -> dict[str, Any]:
    """Writes the Frechet statistics of an image set to config.out and says what they are, ready for JSON."""
    started = time.perf_counter()
    if config.out.is_dir() or (config.out.exists() and config.out.samefile(config.images)):
        raise UserError(
            f"out: {config.out} is {'a folder' if config.out.is_dir() else 'the image set itself'}; name a new .npz"
        )
    with join() as ranks:
        extractor = _open_network(config, ranks)
        images = open_images(config.images)
        check_images(images, extractor)
        parts: tuple[Part, ...] = ("frechet", "spatial") if extractor.spatial_dim else ("frechet",)
        collected = collect(
            images, extractor, parts, batch_size=config.batch_size, ranks=ranks, cache=_cache(config.cache)
        )
        if collected is not None:
            assert collected.frechet is not None
            write_statistics(
                config.out,
                collected.frechet,
                features=extractor.name,
                protocol=extractor.protocol,
                sha256=extractor.source.sha256,
                spatial=collected.spatial,
            )
    if not ranks.is_first:
        sys.exit(0)
    return {
        "n_images": len(images),
        "features": extractor.name,
        **_described(extractor),
        "images": str(config.images),
        "out": str(config.out),
        "versions": _versions(),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def _open_network(config: QualityConfig | StatisticsConfig, ranks: Ranks) -> FeatureExtractor:
    """On the first rank first: it may have to download weights, which the others then find."""

    def opened() -> FeatureExtractor:
        return open_features(
            config.features, weights=config.weights, protocol=config.protocol, device=ranks.device(config.device)
        )

    first = opened() if ranks.is_first else None
    ranks.barrier()
    return first or opened()


def _side(
    config: QualityConfig, opened: Opened, extractor: FeatureExtractor, ranks: Ranks, cache: StatisticsCache | None
) -> Side:
    """What the metrics need of one set, on the first rank."""
    parts = _parts(config, opened)
    collected = None
    if parts:
        assert opened.images is not None
        split = _splits(extractor.protocol, len(opened.images)) if "score" in parts else None
        collected = collect(
            opened.images,
            extractor,
            parts,
            split=split,
            batch_size=config.batch_size,
            ranks=ranks,
            cache=cache,
        )
    stored, images = opened.stored, opened.images
    return Side(
        frechet=stored or (collected and collected.frechet),
        spatial=(stored and stored.spatial) or (collected and collected.spatial),
        score=collected and collected.score,
        rows=collected and collected.rows,
        labels=None if images is None else images.labels,
        class_names=None if images is None else images.class_names,
    )


def _parts(config: QualityConfig, opened: Opened) -> Collection[Part]:
    """What a pass over the set must bring: not what is stored."""
    needs: set[Part] = {part for metric in config.metric_names for part in NEEDS[metric][opened.is_reference]}
    if config.per_class or ((config.bootstrap or config.infinite) and not opened.is_reference):
        needs.add("rows")
    if opened.stored is not None:
        needs -= {"frechet", "spatial"}
    return needs


def _splits(protocol: str, n: int) -> np.ndarray:
    return blocks(n) if protocol == "adm" else shuffled_splits(n)


def _dinov2(
    extractor: FeatureExtractor,
    opened: Sequence[Opened],
    batch_size: int,
    ranks: Ranks,
    cache: StatisticsCache | None,
) -> dict[str, Any]:
    """FD-DINOv2: a Frechet distance in another network's features, so a pass of its own."""
    collected = [
        collect(one.images, extractor, ("frechet",), batch_size=batch_size, ranks=ranks, cache=cache)
        for one in opened
        if one.images is not None
    ]
    if not ranks.is_first:
        return {}
    images, reference = (Side(frechet=one.frechet) for one in collected if one is not None)
    found = measure(["fid"], images, reference, Options(extractor.protocol, is_fid=False))
    return {"fd_dinov2": found["frechet"], "dinov2": _described(extractor)}


def _cache(choice: str) -> StatisticsCache | None:
    if choice == "none":
        return None
    return StatisticsCache(user_cache() if choice == "auto" else Path(choice))


def _described(extractor: FeatureExtractor) -> dict[str, Any]:
    kind = "checkpoint" if extractor.name.startswith("classifier:") else "weights"
    return {"dim": extractor.dim, "protocol": extractor.protocol, kind: asdict(extractor.source)}


def _versions() -> dict[str, str]:
    """Of what the numbers came from."""
    found = {"torch": str(torch.__version__), "numpy": np.__version__}
    for package in ("bigroc", "torch-fidelity", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
