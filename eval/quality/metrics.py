"""The metrics, each of them one class (see metric.py).

A new metric is one more subclass of Metric, added to METRICS, and its name to MetricName. Flags, help, checks, the pass
over the images, the cache, the summary and eval.image_quality all follow from it. A number that is computed from
features belongs in robust_models/metrics/; what is here gives it a name, its needs and its words.
"""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.quality.diversity import NearestReal, WithinClass
from eval.quality.metric import Metric, MetricName, Options, Part, Side, Summary
from eval.quality.sheet import CMMD, DensityCoverage, DistanceMoved, LabelAgreement, Vendi
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor
from robust_models.grids import check_picture_out
from robust_models.metrics import (
    LEAST_SPLITS,
    FrechetReference,
    FrechetStatistics,
    Resampler,
    distance_interval,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from robust_models.metrics.half_splits import LEAST_IMAGES
from robust_models.metrics.kernel import SUBSET_SIZE, SUBSETS, kernel_interval
from robust_models.metrics.neighbour_intervals import precision_recall_intervals
from robust_models.metrics.resampled import LEAST_PER_FEATURE
from robust_models.runtime.command import within


class FID(Metric):
    """Frechet distance (Heusel et al. 2017); the FID where the features are the FID network's."""

    name = "fid"
    needs = reference_needs = ("frechet",)
    rewards = "features whose mean and covariance are the real ones'"
    fooled_by = "few images (biased upwards: compare equal N only), and by what fools its network"
    least_per_feature = LEAST_PER_FEATURE

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.frechet is not None
        assert reference.frechet is not None
        against = FrechetReference(reference.frechet)
        frechet = against.distance(images.frechet)
        found: dict[str, Any] = {"frechet": frechet, **({"fid": frechet} if features.is_fid else {})}
        if options.intervals or options.infinite:
            assert images.rows is not None
            resampler = Resampler(images.rows, against)
            if options.intervals:
                found["frechet_interval"] = _interval(images.rows, against, options)
            if options.infinite:
                limit = resampler.extrapolated(seed=options.seed)
                found["frechet_infinite"] = limit.value
                found["frechet_infinite_error"] = limit.error
                found["frechet_infinite_fit"] = {"slope": limit.slope, "n": limit.sizes, "frechet": limit.distances}
        n, real = getattr(images.frechet, "n", None), reference.rows
        if real is not None and n and n < least_images(self, features.dim) and len(real) - n >= n // 2:
            found["frechet_floor"], found["frechet_floor_n"] = _floor(real, n), [n, len(real) - n]
        if options.per_class:
            found["per_class"] = _per_class(images, reference, options)
        return found

    def lines(self, summary: Summary) -> list[str]:
        name = "FID, the Frechet distance" if "fid" in summary else "Frechet distance"
        interval = within(summary, "frechet") if "frechet_interval" in summary else ""
        lines = [f"{name} in {_space(summary)}: {summary['frechet']:.6g}{interval}"]
        if "frechet_floor" in summary:
            n, others = summary["frechet_floor_n"]
            floor = f"{summary['frechet_floor']:.6g}"
            lines.append(f"  the floor: {n} of the real images against the other {others}: {floor}")
        if "frechet_infinite" in summary:
            value, error = summary["frechet_infinite"], summary["frechet_infinite_error"]
            lines.append(f"  extrapolated to infinitely many images: {value:.6g} +- {error:.2g} (standard error)")
        for label, found in summary.get("per_class", {}).items():
            value = f"{found['frechet']:.6g}{within(found, 'frechet')}"
            lines.append(f"  {label}: {value}, N = {found['n_images']} against {found['n_reference']}")
        return lines


class InceptionScore(Metric):
    """Salimans et al. 2016; of a classifier's predictions it is that classifier's score."""

    name = "is"
    needs, reference_needs = ("score",), ()
    rewards = "predictions that are sure and, over the set, of every class"
    fooled_by = "any edit that a classifier drives: it rises without end; it sees no reference"
    least = 5000

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.score is not None
        mean, std = images.score.score()
        found = {"inception_score": mean, "inception_score_std": std, "inception_score_splits": len(images.score.n)}
        if options.intervals and (interval := images.score.interval()) is not None:
            found["inception_score_interval"] = list(interval)
        return found

    def lines(self, summary: Summary) -> list[str]:
        mean, std, splits = (summary[f"inception_score{part}"] for part in ("", "_std", "_splits"))
        spread = f"+- {std:.3g} over {splits} splits{within(summary, 'inception_score')}"
        return [f"Inception Score in {_space(summary)}: {mean:.6g} {spread}"]


class KID(Metric):
    """Kernel distance (Binkowski et al. 2018)."""

    name = "kid"
    needs = reference_needs = ("rows",)
    rewards = "features distributed as the real ones"
    fooled_by = "what fools its network; unbiased, so few images show in its spread alone"
    least = 200

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        assert reference.rows is not None
        mean, std = kernel_distance(images.rows, reference.rows)
        size = min(SUBSET_SIZE, len(images.rows), len(reference.rows))
        found: dict[str, Any] = {"kid": mean}
        if options.intervals:
            interval = kernel_interval(mean, images.rows, reference.rows, options.intervals, seed=options.seed)
            found["kid_interval"] = list(interval)
        if math.isnan(std):
            return {**found, "kid_std": None, "kid_subsets": [1, size]}
        drawn = [name for name, rows in (("images", images.rows), ("reference", reference.rows)) if len(rows) > size]
        return {**found, "kid_std": std, "kid_subsets": [SUBSETS, size], "kid_drawn_from": drawn}

    def lines(self, summary: Summary) -> list[str]:
        subsets, size = summary["kid_subsets"]
        if summary["kid_std"] is None:
            few = f"one estimate from all images; a spread needs more than {SUBSET_SIZE}"
            return [f"KID in {_space(summary)}: {summary['kid']:.6g}{within(summary, 'kid')} ({few})"]
        of = f"{subsets} subsets of {size}"
        if len(summary["kid_drawn_from"]) == 1:
            drawn = summary["kid_drawn_from"][0]
            whole = "reference" if drawn == "images" else "images"
            of += f" drawn from the {drawn}; each has the whole of the {whole}, whose spread +- leaves out"
        spread = f"+- {summary['kid_std']:.3g} ({of})"
        return [f"KID in {_space(summary)}: {summary['kid']:.6g}{within(summary, 'kid')} {spread}"]


class PrecisionRecall(Metric):
    """Kynkäänniemi et al. 2019."""

    name = "prc"
    needs = reference_needs = ("rows",)
    rewards = "images that lie among the real ones (precision), real ones that lie among the images (recall)"
    fooled_by = "outliers, about which the neighbourhoods are large; two sets of other sizes"
    least = 1000
    neighbours = 3
    adm_reference = 10_000  # images that guided-diffusion's precision and recall compare with

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        assert reference.rows is not None
        real = reference.rows[: self.adm_reference] if features.protocol == "adm" else reference.rows
        if min(len(images.rows), len(real)) <= self.neighbours:
            sizes = f"{len(images.rows)} and {len(real)}"
            raise UserError(f"metrics: prc needs more than {self.neighbours} images in each set, got {sizes}")
        precision, recall = precision_recall(images.rows, real, k=self.neighbours)
        counts = {"prc_neighbours": self.neighbours, "prc_n_reference": len(real)}
        found: dict[str, Any] = {"precision": precision, "recall": recall, **counts}
        if options.intervals:
            intervals = precision_recall_intervals(
                images.rows, real, k=self.neighbours, splits=options.intervals, seed=options.seed
            )
            found["precision_interval"], found["recall_interval"] = map(list, intervals)
        return found

    def lines(self, summary: Summary) -> list[str]:
        settings = f"k = {summary['prc_neighbours']}, {summary['prc_n_reference']} real images"
        precision, recall = (f"{name} {summary[name]:.4f}{within(summary, name)}" for name in ("precision", "recall"))
        return [f"{precision}, {recall}; {settings}"]


class SpatialFID(Metric):
    """Frechet distance in Inception's spatial features (Nash et al. 2021)."""

    name = "sfid"
    needs = reference_needs = ("spatial",)
    rewards = "layout: the same as fid in features that keep their place"
    fooled_by = "the same as fid; texture hardly counts"
    least_per_feature = LEAST_PER_FEATURE
    has_intervals = False  # its features are summed up, not kept

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.spatial is not None
        assert reference.spatial is not None
        return {"sfid": frechet_distance(images.spatial, reference.spatial)}

    def lines(self, summary: Summary) -> list[str]:
        return [f"sFID (first 7 channels of mixed_6, 17x17): {summary['sfid']:.6g}"]


class DINOv2Distance(Metric):
    """Frechet distance in DINOv2's features (Stein et al. 2023), whatever --features is."""

    name = "fd-dinov2"
    needs = reference_needs = ("frechet",)
    own_features = "dinov2"
    rewards = "the same as fid, in features that follow people's judgement better than Inception's"
    fooled_by = "few images (biased upwards)"
    least_per_feature = LEAST_PER_FEATURE

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.frechet is not None
        assert reference.frechet is not None
        against = FrechetReference(reference.frechet)
        found = {"fd_dinov2": against.distance(images.frechet), "dinov2": described(features)}
        if options.intervals:
            assert images.rows is not None
            found["fd_dinov2_interval"] = _interval(images.rows, against, options)
        return found

    def lines(self, summary: Summary) -> list[str]:
        value = f"{summary['fd_dinov2']:.6g}{within(summary, 'fd_dinov2')}"
        return [f"FD with DINOv2 ({summary['dinov2']['weights']['name']}): {value}"]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FID(),
        InceptionScore(),
        KID(),
        PrecisionRecall(),
        DensityCoverage(),
        Vendi(),
        WithinClass(),
        NearestReal(),
        SpatialFID(),
        DINOv2Distance(),
        CMMD(),
        LabelAgreement(),
        DistanceMoved(),
    )
}
ALL = "all"  # as --metrics has it: the whole sheet


def check_options(options: Options, *, with_reference: bool, with_originals: bool) -> None:
    """UserError for a metric that is none, or settings that do not go together."""
    for name in options.metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"metrics: {name!r} is none of {', '.join(METRICS)}, {ALL}{hint}")
    if not options.whole_sheet:
        for name in options.metrics:
            if why := missing(METRICS[name], options, with_reference=with_reference, with_originals=with_originals):
                raise UserError(why)
    of_distance = [name for name in ("per_class", "infinite") if getattr(options, name)]
    if of_distance and "fid" not in options.metrics:
        raise UserError(f"{of_distance[0]}: is of the Frechet distance; add fid to --metrics")
    if options.nearest_picture is not None:
        if "nearest" not in options.metrics:
            raise UserError("nearest_picture: is of the metric nearest; add it to --metrics")
        check_picture_out(options.nearest_picture, "nearest_picture")
    if options.intervals and not any(METRICS[name].has_intervals for name in options.metrics):
        raise UserError(f"intervals: none for {', '.join(options.metrics)}; leave it out")
    if 0 < options.intervals < LEAST_SPLITS:
        few = f"intervals: {options.intervals} half splits are too few to see a spread"
        raise UserError(f"{few}; give {LEAST_SPLITS} or more, 200 are plenty")


def missing(metric: Metric, options: Options, *, with_reference: bool, with_originals: bool) -> str:
    """What the metric needs and was not given, as an error; "" where nothing is missing."""
    if metric.reference_needs and not with_reference:
        alone = [metric.name for metric in METRICS.values() if not metric.reference_needs]
        return f"reference: needed by every metric but {', '.join(alone)}; give an image set or statistics"
    if metric.name == "labels" and options.judge_classifier is None:
        return "judge_classifier: needed by labels; name a classifier that did not refine"
    if metric.name == "moved" and not with_originals:
        return "originals: needed by moved; give the images as they were before they were refined"
    return ""


def extras_of(options: Options) -> list[str]:
    """What is asked for beside the metrics."""
    return [name for name in ("per_class", "intervals", "infinite") if getattr(options, name)]


def parts_needed(options: Options, *, of_reference: bool) -> set[Part]:
    """What the metrics and extras of a pass need of one of the two sets."""
    metrics = [METRICS[name] for name in options.metrics]
    needs = [metric.reference_needs if of_reference else metric.needs for metric in metrics]
    found: set[Part] = {part for parts in needs for part in parts}
    of_images = options.infinite or (options.intervals and "frechet" in found)
    if options.per_class or (of_images and not of_reference):
        found.add("rows")
    return found


def measure(
    metrics: Sequence[MetricName],
    images: Side,
    reference: Side,
    features: FeatureExtractor,
    options: Options,
    left_out: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The numbers of all the metrics, flat, ready for JSON.

    left_out: takes the errors of metrics that cannot be had, by name; None: the first is raised.
    """
    found: dict[str, Any] = {}
    for name in metrics:
        try:
            found |= METRICS[name].compute(images, reference, features, options)
        except UserError as error:
            if left_out is None:
                raise
            left_out[name] = str(error)
    return found


def few_images(metrics: Sequence[str], dim: int, n: int | None, n_reference: int | None) -> dict[str, int]:
    """{metric: images from which it means something} of those that have fewer here."""
    found = {}
    for name in metrics:
        metric, least = METRICS[name], least_images(METRICS[name], dim)
        sizes = [size for size in (n, n_reference if metric.reference_needs else None) if size is not None]
        if sizes and min(sizes) < least:
            found[name] = least
    return found


def least_images(metric: Metric, dim: int) -> int:
    """Images of either set from which it means something in so many features."""
    return max(metric.least, metric.least_per_feature * dim)


def described(features: FeatureExtractor) -> dict[str, Any]:
    """What a number needs beside it: the feature space's dimension, protocol and file."""
    kind = "checkpoint" if features.name.startswith("classifier:") else "weights"
    source: dict[str, Any] = {"name": features.source.name, "sha256": features.source.sha256}
    if features.source.assumptions:
        source["assumptions"] = features.source.assumptions
    return {"dim": features.dim, "protocol": features.protocol, kind: source}


def _space(summary: Summary) -> str:
    return f"{summary['features']} ({summary['dim']}-d, protocol {summary['protocol']})"


def _interval(rows: Tensor, against: FrechetReference, options: Options) -> list[float]:
    """95 % interval of the Frechet distance, as far as a distance can be: it is never negative."""
    interval = distance_interval(Resampler(rows, against), options.intervals, seed=options.seed)
    return [max(0.0, end) for end in interval]


def _floor(real: Tensor, n: int) -> float:
    """The distance of n of the real images, spread over the set, to the rest of them."""
    chosen = torch.zeros(len(real), dtype=torch.bool)
    chosen[torch.linspace(0, len(real) - 1, n).round().long()] = True
    return frechet_distance(FrechetStatistics.of(real[chosen]), FrechetStatistics.of(real[~chosen]))


def _per_class(images: Side, reference: Side, options: Options) -> dict[str, Any]:
    """Frechet distance of the images of each class to the reference's of the same class."""
    ours, theirs = _by_class(images, "images"), _by_class(reference, "reference")
    if ours.keys() != theirs.keys():
        only = sorted(ours.keys() ^ theirs.keys())[0]
        where = "the images" if only in ours else "the reference"
        raise UserError(f"per_class: class {only} is only in {where}; both sets need the same classes")
    for name in ours:
        if min(len(ours[name]), len(theirs[name])) < 2:
            raise UserError(f"per_class: class {name} has 1 image in one of the sets; a Frechet distance needs 2")
    found: dict[str, Any] = {}
    for name, rows in ours.items():
        against = FrechetReference(FrechetStatistics.of(theirs[name]))
        found[name] = {"frechet": against.distance(FrechetStatistics.of(rows))}
        if options.intervals and len(rows) >= LEAST_IMAGES:
            found[name]["frechet_interval"] = _interval(rows, against, options)
        found[name] |= {"n_images": len(rows), "n_reference": len(theirs[name])}
    return found


def _by_class(side: Side, role: str) -> dict[str, Tensor]:
    """Feature rows by the class's name (its number where the set names none)."""
    if side.labels is None or side.rows is None:
        raise UserError(f"per_class: {role} has no labels; give an .npz with arr_1 or a folder of class subfolders")
    labels = torch.from_numpy(side.labels)
    names = {int(i): side.class_names[int(i)] if side.class_names else str(int(i)) for i in labels.unique()}
    return {name: side.rows[labels == i] for i, name in names.items()}
