"""Measures classifiers and image sets: robust accuracy, Frechet distances and the field's other scores."""

from typing import TYPE_CHECKING

from robust_models.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from eval.gradients.alignment import GradientAlignment, gradient_alignment
    from eval.quality.run import image_quality
    from eval.robust.accuracy import RobustAccuracy, robust_accuracy
    from eval.robust.calibration import expected_calibration_error, fit_temperature
    from eval.robust.detection import auroc
    from eval.robust.seeded_pgd import SeededPGD
    from eval.robust.stages import Robustness, binomial_interval, measure_robustness
    from robust_models.features import FeatureExtractor, open_features
    from robust_models.features.extractor import image_statistics
    from robust_models.metrics import FrechetStatistics, frechet_distance

__all__ = [
    "FeatureExtractor",
    "FrechetStatistics",
    "GradientAlignment",
    "RobustAccuracy",
    "Robustness",
    "SeededPGD",
    "auroc",
    "binomial_interval",
    "expected_calibration_error",
    "fit_temperature",
    "frechet_distance",
    "gradient_alignment",
    "image_quality",
    "image_statistics",
    "measure_robustness",
    "open_features",
    "robust_accuracy",
]

__getattr__ = lazy_names(
    __name__,
    {
        "eval.gradients.alignment": ("GradientAlignment", "gradient_alignment"),
        "eval.quality.run": ("image_quality",),
        "eval.robust.accuracy": ("RobustAccuracy", "robust_accuracy"),
        "eval.robust.calibration": ("expected_calibration_error", "fit_temperature"),
        "eval.robust.detection": ("auroc",),
        "eval.robust.seeded_pgd": ("SeededPGD",),
        "eval.robust.stages": ("Robustness", "binomial_interval", "measure_robustness"),
        "robust_models.features": ("FeatureExtractor", "open_features"),
        "robust_models.features.extractor": ("image_statistics",),
        "robust_models.metrics": ("FrechetStatistics", "frechet_distance"),
    },
)
