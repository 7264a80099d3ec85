"""The metrics of how varied made images are: within each class, and beside the images learnt from."""

from pathlib import Path
from typing import Any

import torch

from eval.quality.metric import Metric, Options, Side, Summary
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor
from robust_models.grids import save_rows
from robust_models.images import ImageSet
from robust_models.metrics.diversity import Nearest, nearest, within_class_distance

SHOWN = 16  # images of the picture


class WithinClass(Metric):
    """Mean distance of two images of one class, beside that of real ones."""

    name = "within-class"
    needs = reference_needs = ("rows",)
    rewards = "classes whose images differ as real ones do"
    fooled_by = "noise, which is far from everything: more than the real distance is no gain"
    least = 200
    has_intervals = False

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        return {
            "within_class": _within(images, "images"),
            "within_class_reference": _within(reference, "real images"),
        }

    def lines(self, summary: Summary) -> list[str]:
        made, real = summary["within_class"], summary["within_class_reference"]
        return [f"two images of one class are {made:.4g} apart in {summary['features']}, real ones {real:.4g}"]


class NearestReal(Metric):
    """Distance to the nearest reference image, and authenticity: the share that copies none (Alaa et al. 2022)."""

    name = "nearest"
    needs = reference_needs = ("rows",)
    rewards = "images that are as far from the reference as its own images from each other"
    fooled_by = "bad images, which resemble nothing; a reference that is not what was learnt from"
    least = 200
    has_intervals = False

    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        assert images.rows is not None
        assert reference.rows is not None
        if len(reference.rows) < 2:
            raise UserError(f"metrics: {self.name} needs 2 real images or more, got {len(reference.rows)}")
        found = nearest(images.rows, reference.rows)
        if options.nearest_picture is not None and images.pixels is not None and reference.pixels is not None:
            save_nearest(options.nearest_picture, found, images.pixels, reference.pixels)
        return {
            "nearest_distance": float(found.distance.mean()),
            "nearest_spacing": float(found.spacing.mean()),
            "authenticity": found.authenticity,
            "nearest_picture": None if options.nearest_picture is None else str(options.nearest_picture),
        }

    def lines(self, summary: Summary) -> list[str]:
        lines = [
            f"the nearest real image is {summary['nearest_distance']:.4g} away in {summary['features']}, from which "
            f"the nearest other one is {summary['nearest_spacing']:.4g}; authenticity {summary['authenticity']:.3f}"
        ]
        return lines + ([f"  picture: {summary['nearest_picture']}"] if summary["nearest_picture"] else [])


def _within(side: Side, role: str) -> float:
    if side.labels is None or side.rows is None:
        raise UserError(f"metrics: within-class needs {role} with labels: an .npz with arr_1, or a folder of classes")
    try:
        return within_class_distance(side.rows, torch.from_numpy(side.labels))
    except ValueError as error:
        raise UserError(f"metrics: within-class: {error} ({role})") from error


def save_nearest(path: Path, found: Nearest, images: ImageSet, reference: ImageSet) -> None:
    """A picture of the images that most resemble a real one, each above it: those nearest for their surroundings."""
    closest = (found.distance / found.spacing.clamp_min(torch.finfo(torch.float64).tiny)).argsort()[:SHOWN].tolist()
    made = torch.cat([images.read(i, i + 1) for i in closest])
    real = torch.cat([reference.read(i, i + 1) for i in found.which[closest].tolist()])
    captions = [f"{found.distance[i]:.3g}\n{found.spacing[i]:.3g}" for i in closest]
    note = "Below each pair: how far apart the two are in the features, and how far the real one is from another."
    save_rows(path, [("made", made), ("nearest", real)], captions, note=note)
