"""Measures classifiers and image sets: robust accuracy, Frechet distances."""

from eval.features import FeatureExtractor, open_features
from eval.metrics import FrechetStatistics, frechet_distance
from eval.quality import image_statistics
from eval.robustness import Robustness, binomial_interval, measure_robustness
from eval.seeded_pgd import SeededPGD

__all__ = [
    "FeatureExtractor",
    "FrechetStatistics",
    "Robustness",
    "SeededPGD",
    "binomial_interval",
    "frechet_distance",
    "image_statistics",
    "measure_robustness",
    "open_features",
]
