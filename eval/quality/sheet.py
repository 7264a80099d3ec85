"""The metrics that complete the sheet of an image paper: neighbourhoods, diversity, CLIP, labels, distance moved."""

from typing import Any

import torch

from eval.quality.metric import JUDGE, Metric, Options, Side, Summary
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor
from robust_models.features.extractor import ClassifierFeatures
from robust_models.images import ImageSet, to_float
from robust_models.labels import fit_labels
from robust_models.metrics.cmmd import cmmd
from robust_models.metrics.density_coverage import density_coverage
from robust_models.metrics.neighbour_intervals import density_coverage_intervals, share_interval
from robust_models.metrics.vendi import vendi_score
from robust_models.runtime.command import within


class DensityCoverage(Metric):
    """Density and coverage of the real images' neighbourhoods, 5 neighbours (Naeem et al. 2020)."""

    name = "density-coverage"
    needs = reference_needs = ("rows",)
    rewards = "images that fill the real ones' neighbourhoods (density), neighbourhoods that are met (coverage)"
    fooled_by = "density by images that crowd where the real ones are dense: it exceeds 1"
    least = 1000
    neighbours = 5

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        assert reference.rows is not None
        if len(reference.rows) <= self.neighbours:
            raise UserError(
                f"metrics: {self.name} needs more than {self.neighbours} real images, got {len(reference.rows)}"
            )
        density, coverage = density_coverage(images.rows, reference.rows, k=self.neighbours)
        found: dict[str, Any] = {"density": density, "coverage": coverage}
        if options.intervals:
            intervals = density_coverage_intervals(
                images.rows, reference.rows, k=self.neighbours, splits=options.intervals, seed=options.seed
            )
            found["density_interval"], found["coverage_interval"] = map(list, intervals)
        return {**found, "density_coverage_neighbours": self.neighbours}

    def lines(self, summary: Summary) -> list[str]:
        density, coverage = (f"{name} {summary[name]:.4f}{within(summary, name)}" for name in ("density", "coverage"))
        return [f"{density}, {coverage}; k = {summary['density_coverage_neighbours']}"]


class Vendi(Metric):
    """Vendi score: the effective number of different images, by cosine (Friedman and Dieng 2023)."""

    name = "vendi"
    needs, reference_needs = ("rows",), ()
    rewards = "images that differ from each other"
    fooled_by = "noise, the most diverse of all; it sees no reference, and grows with N"
    least = 500
    has_intervals = False

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        found = {"vendi": vendi_score(images.rows)}
        if reference.rows is not None and len(reference.rows) >= len(images.rows):
            index = torch.linspace(0, len(reference.rows) - 1, len(images.rows)).round().long()
            found["vendi_reference"] = vendi_score(reference.rows[index])
        return found

    def lines(self, summary: Summary) -> list[str]:
        real = f" (as many real images: {summary['vendi_reference']:.6g})" if "vendi_reference" in summary else ""
        return [f"Vendi score in {summary['features']} ({summary['dim']}-d): {summary['vendi']:.6g}{real}"]


class CMMD(Metric):
    """Squared MMD of CLIP's embeddings, times 1000, unbiased (Jayasumana et al. 2024)."""

    name = "cmmd"
    needs = reference_needs = ("rows",)
    own_features = "clip"
    rewards = "embeddings distributed as the real ones', no Gaussian assumed"
    fooled_by = "what fools CLIP: text in images, and little of fine texture counts"
    least = 500
    has_intervals = False

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        assert reference.rows is not None
        weights = {"name": features.source.name, "sha256": features.source.sha256}
        return {"cmmd": cmmd(images.rows, reference.rows), "clip": weights}

    def lines(self, summary: Summary) -> list[str]:
        return [f"CMMD with CLIP ({summary['clip']['name']}): {summary['cmmd']:.6g}"]


class LabelAgreement(Metric):
    """Share of images that an uninvolved classifier puts in their class, and its confidence in it."""

    name = "labels"
    needs, reference_needs = ("rows",), ()
    own_features = JUDGE
    rewards = "images that show what their label says"
    fooled_by = "refining with a classifier of the judge's kind: what one adds, the other sees"
    least = 200

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        assert isinstance(features, ClassifierFeatures)
        if images.labels is None:
            raise UserError("metrics: labels needs images with labels: an .npz with arr_1, or a folder of classes")
        y = torch.from_numpy(fit_labels(images.labels, images.class_names, features.class_names, source="images"))
        probs = features.logits(images.rows).double().softmax(dim=1).cpu()
        agrees = probs.argmax(dim=1) == y
        found: dict[str, Any] = {
            "label_agreement": float(agrees.double().mean()),
            "label_confidence": float(probs[torch.arange(len(y)), y].mean()),
            "judge_classifier": {"name": features.source.name, "sha256": features.source.sha256},
        }
        if options.intervals:
            found["label_agreement_interval"] = list(share_interval(agrees))
        return found

    def lines(self, summary: Summary) -> list[str]:
        agreement = f"{summary['label_agreement']:.1%} of the images in their class"
        judge, confidence = summary["judge_classifier"]["name"], summary["label_confidence"]
        agreement += within(summary, "label_agreement")
        return [f"{judge} puts {agreement}; confidence in it {confidence:.3f}"]


class DistanceMoved(Metric):
    """L2 norm of the change of each image from its original, pixels in [0,1]."""

    name = "moved"
    needs = reference_needs = ()
    rewards = "nothing: it is the price of what the other metrics gained"
    fooled_by = "nothing: it is measured, not judged"
    has_intervals = False

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.pixels is not None
        assert options.originals is not None
        norms = _norms(images.pixels, options.originals)
        return {"moved_mean": float(norms.mean()), "moved_max": float(norms.max())}

    def lines(self, summary: Summary) -> list[str]:
        return [
            f"moved from the originals by {summary['moved_mean']:.4g} (L2, mean; at most {summary['moved_max']:.4g})"
        ]


def _norms(images: ImageSet, originals: ImageSet) -> torch.Tensor:
    """L2 norm of each image less the original of the same name, [N]. UserError where names or sizes do not fit."""
    if images.size != originals.size:
        (height, width), (other_height, other_width) = images.size, originals.size
        raise UserError(f"originals: {other_width}x{other_height}, but the images are {width}x{height}")
    place = {name: i for i, name in enumerate(originals.names)}
    absent = next((name for name in images.names if name not in place), None)
    if absent is not None:
        raise UserError(f"originals: {originals.path} has no image called {absent}, which {images.path} has")
    norms = []
    for i, name in enumerate(images.names):
        pair = [to_float(one.read(j, j + 1)) for one, j in ((images, i), (originals, place[name]))]
        norms.append((pair[0] - pair[1]).double().norm())
    return torch.stack(norms)
