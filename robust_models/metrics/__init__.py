"""From features to numbers: small pure steps over mergeable float64 statistics."""

from robust_models.metrics.frechet import FrechetReference, FrechetStatistics, Moments, frechet_distance
from robust_models.metrics.half_splits import LEAST_SPLITS, distance_interval, half_split_interval, half_splits
from robust_models.metrics.inception_score import ScoreStatistics, inception_score
from robust_models.metrics.kernel import kernel_distance
from robust_models.metrics.precision_recall import precision_recall
from robust_models.metrics.resampled import Extrapolation, Resampler, bootstrap_counts
from robust_models.metrics.stored import StoredStatistics, read_statistics, write_statistics

__all__ = [
    "LEAST_SPLITS",
    "Extrapolation",
    "FrechetReference",
    "FrechetStatistics",
    "Moments",
    "Resampler",
    "ScoreStatistics",
    "StoredStatistics",
    "bootstrap_counts",
    "distance_interval",
    "frechet_distance",
    "half_split_interval",
    "half_splits",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "read_statistics",
    "write_statistics",
]
