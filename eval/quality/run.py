"""The `quality` and `statistics` measurements: from image sets to the field's numbers, or to statistics on disk."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.quality.cache import StatisticsCache, user_cache
from eval.quality.collect import collect
from eval.quality.config import Protocol, QualityConfig, StatisticsConfig
from eval.quality.metric import MetricName, Options, Part, Side
from eval.quality.metrics import METRICS, check_options, described, measure, parts_needed
from eval.quality.sets import Images, Opened, open_sets
from robust_models import ImageSet, UserError, open_images
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.extractor import check_images
from robust_models.metrics import write_statistics
from robust_models.metrics.inception_score import blocks, shuffled_splits
from robust_models.runtime.command import Summary
from robust_models.runtime.device import pick_device
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.version import versions


def image_quality(
    images: Images,
    reference: Images | None = None,
    *,
    metrics: MetricName | Sequence[MetricName] = "fid",
    features: str | FeatureExtractor = "inception",
    protocol: Protocol | None = None,
    weights: Path | str | None = None,
    per_class: bool = False,
    intervals: int = 0,
    infinite: bool = False,
    seed: int = 0,
    cache: Path | str | None = None,
    batch_size: int = 50,
    device: str = "auto",
) -> dict[str, Any]:
    """Scores of a set of images, alone or against a reference set: what `bigroc eval quality` prints, as a dict.

    images, reference: uint8 or float-in-[0,1] pixels [N,3,H,W] or [N,H,W,3] as a tensor or array (floats are rounded to
    8 bits, as a file would hold them), an ImageSet, or the path of an image set or of stored statistics.
    metrics: one or several of fid, is, kid, prc, sfid, fd-dinov2; all share one pass of each set. The keys of the
    result: "frechet" (and "fid", with Inception's 2048 features), "inception_score", "kid", "precision" and "recall",
    "sfid", "fd_dinov2", with their spreads and settings; "n_images" and "n_reference".
    features, protocol, weights: see open_features. per_class, intervals (half splits), infinite, seed: of the Frechet
    distance. cache: a folder in which features are kept. UserError for whatever does not fit.
    """
    names: tuple[MetricName, ...] = (metrics,) if isinstance(metrics, str) else tuple(dict.fromkeys(metrics))
    options = Options(names, per_class, intervals, infinite, seed)
    check_options(options, with_reference=reference is not None)
    place = pick_device(device)
    if isinstance(features, str):
        features = open_features(features, weights=weights, protocol=protocol, device=place)
    opened = open_sets(images, reference, options, features)
    kept = None if cache is None else StatisticsCache(Path(cache))
    found = _measure_sets(opened, features, options, batch_size, place, Ranks(), kept)
    return {"n_images": opened[0].n, "n_reference": opened[1].n, **found}


def run_quality(config: QualityConfig) -> dict[str, Any]:
    """Every metric asked for, of one image set or between two, ready for JSON. UserError for bad input.

    Under torchrun the ranks share the images and only the first returns; the others leave (SystemExit, status 0).
    """
    started = time.perf_counter()
    with join() as ranks:
        features = _open_network(config, ranks)
        opened = open_sets(config.images, config.reference, config.options, features)
        device, cache = ranks.device(config.device), _cache(config.cache)
        found = _measure_sets(opened, features, config.options, config.batch_size, device, ranks, cache)
    if not ranks.is_first:
        sys.exit(0)
    images, reference = opened
    return {
        "n_images": images.n,
        "n_reference": reference.n,
        "features": features.name,
        **found,
        **described(features),
        "metrics": list(config.metric_names),
        "images": str(config.images),
        "reference": None if config.reference is None else str(config.reference),
        "seed": config.seed,
        "versions": versions("torch-fidelity", "timm"),
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
        features = _open_network(config, ranks)
        images = open_images(config.images)
        check_images(images, features)
        parts: tuple[Part, ...] = ("frechet", "spatial") if features.spatial_dim else ("frechet",)
        cache = _cache(config.cache)
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
        sys.exit(0)
    return {
        "n_images": len(images),
        "features": features.name,
        **described(features),
        "images": str(config.images),
        "out": str(config.out),
        "versions": versions("torch-fidelity", "timm"),
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


def _measure_sets(
    opened: tuple[Opened, Opened],
    features: FeatureExtractor,
    options: Options,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
    cache: StatisticsCache | None,
) -> dict[str, Any]:
    """All numbers, on the first rank ({} on the others): a pass of each set in every feature space asked for."""
    own = dict.fromkeys(METRICS[name].own_features for name in options.metrics)
    spaces = {name: open_features(name, device=device) for name in own if name is not None}  # before any long work
    found: dict[str, Any] = {}
    for name in own:
        space = features if name is None else spaces[name]
        metrics: list[MetricName] = [metric for metric in options.metrics if METRICS[metric].own_features == name]
        images, reference = (_side(one, space, name, options, batch_size, ranks, cache) for one in opened)
        if ranks.is_first:
            found |= measure(metrics, images, reference, space, options)
    return found


def _side(
    opened: Opened,
    features: FeatureExtractor,
    own_features: str | None,
    options: Options,
    batch_size: int,
    ranks: Ranks,
    cache: StatisticsCache | None,
) -> Side:
    """What the metrics of one feature space need of one set, on the first rank; stored statistics spare a pass."""
    images, stored = opened.images, opened.stored if own_features is None else None
    parts = parts_needed(options, own_features, of_reference=opened.is_reference)
    if stored is not None:
        parts -= {"frechet", "spatial"}
    collected = None
    if parts:
        assert images is not None
        split = _splits(features.protocol, images) if "score" in parts else None
        collected = collect(images, features, parts, split=split, batch_size=batch_size, ranks=ranks, cache=cache)
    return Side(
        frechet=stored or (collected and collected.frechet),
        spatial=(stored and stored.spatial) or (collected and collected.spatial),
        score=collected and collected.score,
        rows=collected and collected.rows,
        labels=None if images is None else images.labels,
        class_names=None if images is None else images.class_names,
    )


def _splits(protocol: str, images: ImageSet) -> np.ndarray:
    """The Inception Score's split of each image. UserError where one holds a single image, whose score is always 1."""
    split = blocks(len(images)) if protocol == "adm" else shuffled_splits(len(images))
    sizes = np.bincount(split)
    if sizes.min() < 2:
        raise UserError(
            f"metrics: is needs 2 images or more in each of its {len(sizes)} splits (thousands, to mean something); "
            f"{images.path} has {len(images)}"
        )
    return split


def _cache(choice: str) -> StatisticsCache | None:
    if choice == "none":
        return None
    return StatisticsCache(user_cache() if choice == "auto" else Path(choice))


def format_quality(summary: Summary) -> str:
    """A line or more for each metric, then the sets and the network."""
    lines = [line for metric in summary["metrics"] for line in METRICS[metric].lines(summary)]
    lines.append(f"N = {summary['n_images'] or 'unknown'} ({summary['images']})")
    if summary["reference"] is not None:
        lines[-1] += f" against N = {summary['n_reference'] or 'unknown'} ({summary['reference']})"
    source = summary.get("weights") or summary.get("checkpoint")
    return "\n".join([*lines, *([f"network {source['name']}, sha256 {source['sha256'][:12]}"] if source else [])])


def format_statistics(summary: Summary) -> str:
    """What was written, and of what."""
    return (
        f"{summary['out']}: mean and covariance of {summary['dim']} features in {summary['features']} "
        f"(protocol {summary['protocol']}), N = {summary['n_images']}"
    )
