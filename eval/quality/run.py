"""The `quality` measurement: from image sets to the field's numbers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from eval.quality.cache import StatisticsCache, user_cache
from eval.quality.config import Protocol, QualityConfig, StatisticsConfig
from eval.quality.explain import explained, explained_lines
from eval.quality.metric import JUDGE, Metric, MetricName, Options
from eval.quality.metrics import ALL, METRICS, check_options, described, few_images, measure, missing
from eval.quality.sets import Images, Machine, Opened, Pass, check_splits, open_originals, open_sets, side
from robust_models import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.extractor import each_space
from robust_models.metrics.resampled import LEAST_PER_FEATURE, check_extrapolation
from robust_models.runtime.command import Summary
from robust_models.runtime.device import pick_device
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.version import versions


def image_quality(
    images: Images,
    reference: Images | None = None,
    *,
    metrics: MetricName | Literal["all"] | Sequence[MetricName] = "fid",
    features: str | FeatureExtractor = "inception",
    protocol: Protocol | None = None,
    weights: Path | str | None = None,
    per_class: bool = False,
    intervals: int = 0,
    infinite: bool = False,
    seed: int = 0,
    judge_classifier: str | None = None,
    originals: Images | None = None,
    nearest_picture: Path | str | None = None,
    cache: Path | str | None = None,
    batch_size: int = 50,
    device: str = "auto",
) -> dict[str, Any]:
    """Scores of a set of images, alone or against a reference set: what `bigroc eval quality` prints, as a dict.

    images, reference: uint8 or float-in-[0,1] pixels [N,3,H,W] or [N,H,W,3] as a tensor or array (floats are rounded to
    8 bits, as a file would hold them), an ImageSet, or the path of an image set or of stored statistics.
    metrics: one or several of fid, is, kid, prc, density-coverage, vendi, within-class, nearest (nearest_picture: where
    it draws the closest pairs), sfid, fd-dinov2, cmmd, labels (needs judge_classifier, one that did not refine) and
    moved (needs originals, the images before); or all: every one that can be had, the others in "left_out" with the
    reason. All share one pass of each set in a feature space. The keys of the result: "frechet" (and "fid", with
    Inception's 2048 features), "inception_score", "kid", "precision" and "recall", "density" and "coverage", "vendi",
    "within_class" and "within_class_reference", "nearest_distance", "nearest_spacing" and "authenticity", "sfid",
    "fd_dinov2", "cmmd", "label_agreement" and "label_confidence", "moved_mean", with their spreads and settings;
    "n_images" and "n_reference"; "few_images": the metrics that mean something from more images only, with that N.
    features, protocol, weights: see open_features; several names with commas: the numbers of all but the first are in
    "spaces", a list. per_class, intervals (half splits), infinite, seed: of the Frechet distance. cache: a folder in
    which features are kept. UserError for whatever does not fit.
    """
    every: list[MetricName] = list(METRICS)  # type: ignore[arg-type]
    names = every if metrics == ALL else [metrics] if isinstance(metrics, str) else metrics
    options = Options(
        tuple(dict.fromkeys(names)),  # type: ignore[arg-type]
        per_class,
        intervals,
        infinite,
        seed,
        whole_sheet=metrics == ALL,
        judge_classifier=judge_classifier,
        originals=None if originals is None else open_originals(originals),
        nearest_picture=None if nearest_picture is None else Path(nearest_picture),
    )
    check_options(options, with_reference=reference is not None, with_originals=originals is not None)
    place = pick_device(device)
    spaces = _opened(features, weights, protocol, place) if isinstance(features, str) else [features]
    machine = Machine(batch_size, place, cache=None if cache is None else StatisticsCache(Path(cache)))
    return _measured(images, reference, options, spaces, machine)


def run_quality(config: QualityConfig) -> dict[str, Any] | None:
    """Every metric asked for, of one image set or between two, ready for JSON. UserError for bad input.

    None on the ranks of a torchrun job that only helped the first one.
    """
    started = time.perf_counter()
    originals = None if config.originals is None else open_originals(config.originals)
    with join() as ranks:
        spaces = open_networks(config, ranks)
        machine = Machine(config.batch_size, ranks.device(config.device), ranks, open_cache(config.cache))
        options = replace(config.options, originals=originals)
        found = _measured(config.images, config.reference, options, spaces, machine)
    if not ranks.is_first:
        return None
    return {
        **found,
        "images": str(config.images),
        "reference": None if config.reference is None else str(config.reference),
        "seed": config.seed,
        **({"explained": explained()} if config.explain else {}),
        "versions": versions("torch-fidelity", "timm"),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def _measured(
    images: Images, reference: Images | None, options: Options, spaces: Sequence[FeatureExtractor], machine: Machine
) -> dict[str, Any]:
    """All numbers, on the first rank ({} on the others): flat by the first feature space, by the others in "spaces"."""
    planned = plan(options, spaces, machine.device, with_reference=reference is not None)
    found = run_passes(images, reference, planned, machine)
    if not machine.ranks.is_first:
        return {}
    lead, others = found[0], found[1 : len(spaces)]
    few, measured = lead["few_images"], lead["metrics"]
    for more in found[len(spaces) :]:  # of metrics that have features of their own
        few, measured = few | more["few_images"], measured + more["metrics"]
        lead = {**more, **lead}
    return {
        **lead,
        "few_images": few,
        "metrics": sorted(measured, key=options.metrics.index),
        **({"spaces": others} if others else {}),
        **({} if planned.left_out is None else {"left_out": planned.left_out}),
        "intervals": options.intervals,
    }


@dataclass(frozen=True)
class Plan:
    """The passes, those of --features first; left_out: {metric: why it cannot be had}, None where that is an error."""

    passes: tuple[Pass, ...]
    left_out: dict[str, str] | None


def plan(options: Options, spaces: Sequence[FeatureExtractor], device: torch.device, *, with_reference: bool) -> Plan:
    """Opens the metrics' own feature spaces. UserError for what cannot be had, unless the whole sheet was asked for."""
    left_out: dict[str, str] = {}
    by_space: dict[str | None, list[MetricName]] = {None: []}
    for name in options.metrics:
        metric = METRICS[name]
        given = {"with_reference": with_reference, "with_originals": options.originals is not None}
        judge = f"classifier:{(options.judge_classifier or '').removeprefix('classifier:')}"
        own = judge if metric.own_features == JUDGE else metric.own_features
        if why := missing(metric, options, **given) or _impossible(metric, spaces):
            left_out[name] = why
        else:
            by_space.setdefault(own, []).append(name)
    extras = {"per_class": False, "infinite": False}
    passes = []
    for i, space in enumerate(spaces):
        names = [
            name for name in by_space[None] if not _cannot(METRICS[name], space) and (i == 0 or METRICS[name].needs)
        ]
        names += by_space.pop(space.name, [])
        more: dict[str, Any] = {} if "fid" in names else dict(extras)
        more |= {} if i == 0 else {"nearest_picture": None}
        passes.append(Pass(space, replace(options, metrics=tuple(names), **more), own=False))
    for space_name, names in by_space.items():
        if space_name is None or not names:
            continue
        try:
            space = open_features(space_name, device=device)
        except UserError as error:
            left_out |= dict.fromkeys(names, str(error))
        else:
            passes.append(Pass(space, replace(options, metrics=tuple(names), **extras), own=True))
    if left_out and not options.whole_sheet:
        raise UserError(next(iter(left_out.values())))
    return Plan(tuple(passes), left_out if options.whole_sheet else None)


def run_passes(images: Images, reference: Images | None, planned: Plan, machine: Machine) -> list[dict[str, Any]]:
    """The numbers of each pass, with N and what they depend on; on the first rank (empty on the others)."""
    left_out = planned.left_out
    opened = [_open_pass(images, reference, one, left_out) for one in planned.passes]  # before any long work
    return [_numbers(one, pair, left_out, machine) for one, pair in opened]


def _open_pass(
    images: Images, reference: Images | None, one: Pass, left_out: dict[str, str] | None
) -> tuple[Pass, tuple[Opened, Opened]]:
    """The sets of a pass. With left_out, metrics that these sets cannot give go there, and the pass is without them."""

    def opened(one: Pass) -> tuple[Opened, Opened]:
        pair = open_sets(images, reference, one.options, one.features, own=one.own)
        if "is" in one.options.metrics:
            check_splits(one.features.protocol, pair[0])
        if one.options.infinite and left_out is None and pair[0].n is not None:
            check_extrapolation(pair[0].n, one.features.dim)
        return pair

    try:
        return one, opened(one)
    except UserError as error:
        if left_out is None:
            raise
        why = str(error)
    by_statistics = [name for name in one.options.metrics if _statistics_do(METRICS[name])]
    for kept in ([name for name in one.options.metrics if name != "is"], by_statistics):
        less = replace(one, options=replace(one.options, metrics=tuple(kept)))
        try:
            pair = opened(less)
        except UserError as error:
            why = str(error)
            continue
        left_out |= dict.fromkeys(set(one.options.metrics) - set(kept), why)
        return less, pair
    raise UserError(why)


def _statistics_do(metric: Metric) -> bool:
    """Whether stored statistics of either set are enough."""
    return {*metric.needs, *metric.reference_needs} <= {"frechet", "spatial"}


def _impossible(metric: Metric, spaces: Sequence[FeatureExtractor]) -> str:
    """Why none of the spaces will do for a metric that has none of its own; "" where one will."""
    reasons = [_cannot(metric, space) for space in spaces]
    return f"metrics: {metric.name} {reasons[0]}" if all(reasons) and metric.own_features is None else ""


def _cannot(metric: Metric, space: FeatureExtractor) -> str:
    """Why the metric cannot be had in these features; "" where it can."""
    if "score" in metric.needs and space.num_classes is None:
        return f"needs the logits of a whole network, which {space.name} has not; use --features inception"
    if "spatial" in metric.needs and space.spatial_dim is None:
        return f"needs Inception's spatial features, which {space.name} has not"
    return ""


def _numbers(
    one: Pass, pair: tuple[Opened, Opened], left_out: dict[str, str] | None, machine: Machine
) -> dict[str, Any]:
    images, reference = (side(opened, one, machine) for opened in pair)
    if not machine.ranks.is_first:
        return {}
    options, n = one.options, pair[0].n
    if options.whole_sheet and "fid" in options.metrics and (n or 0) >= LEAST_PER_FEATURE * one.features.dim:
        options = replace(options, infinite=images.rows is not None)
    found = measure(options.metrics, images, reference, one.features, options, left_out)
    return {
        "n_images": n,
        "n_reference": pair[1].n,
        "features": one.features.name,
        **found,
        **described(one.features),
        "metrics": [name for name in options.metrics if name not in (left_out or {})],
        "few_images": few_images(options.metrics, one.features.dim, n, pair[1].n),
    }


def open_networks(config: QualityConfig | StatisticsConfig, ranks: Ranks) -> list[FeatureExtractor]:
    """Those of --features, on the first rank first: it may have to download weights, which the others then find."""

    def opened() -> list[FeatureExtractor]:
        return _opened(config.features, config.weights, config.protocol, ranks.device(config.device))

    first = opened() if ranks.is_first else None
    ranks.barrier()
    return first or opened()


def _opened(
    names: str, weights: Path | str | None, protocol: Protocol | None, device: torch.device
) -> list[FeatureExtractor]:
    found = []
    for name, settings in each_space(names, weights=weights, protocol=protocol):
        found.append(open_features(name, **settings, device=device))
    return found


def open_cache(choice: str) -> StatisticsCache | None:
    """The cache that --cache names; None for "none"."""
    if choice == "none":
        return None
    return StatisticsCache(user_cache() if choice == "auto" else Path(choice))


def format_quality(summary: Summary) -> str:
    """A line or more for each metric, then the sets and the networks, what was left out, and what the metrics are."""
    lines = _lines(summary)
    for other in summary.get("spaces", []):
        lines += [f"in {other['features']}:", *(f"  {line}" for line in _lines(other))]
    lines.append(f"N = {summary['n_images'] or 'unknown'} ({summary['images']})")
    if summary["reference"] is not None:
        lines[-1] += f" against N = {summary['n_reference'] or 'unknown'} ({summary['reference']})"
    for one in (summary, *summary.get("spaces", [])):
        source = one.get("weights") or one.get("checkpoint")
        lines += [f"network {source['name']}, sha256 {source['sha256'][:12]}"] if source else []
    if summary["intervals"]:
        lines.append(f"95 %: what other sets of {summary['n_images']} images would score against this reference")
    lines += [f"left out: {name}: {why}" for name, why in summary.get("left_out", {}).items()]
    if "explained" in summary:
        spaces = [one["features"] for one in (summary, *summary.get("spaces", []))]
        lines += explained_lines(summary["explained"], spaces)
    return "\n".join(lines)


def _lines(found: Summary) -> list[str]:
    """Of the metrics of one feature space; too few images are said on the line."""
    lines = []
    for name in found["metrics"]:
        first, *others = METRICS[name].lines(found)
        least = found["few_images"].get(name)
        lines += [first + (f"; N is few: it means something from {least:,} on" if least else ""), *others]
    return lines
