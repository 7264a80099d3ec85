"""From features to numbers: small pure steps over mergeable float64 statistics (robust_models.metrics)."""

from robust_models.metrics import (
    Extrapolation,
    FrechetReference,
    FrechetStatistics,
    Moments,
    Resampler,
    ScoreStatistics,
    StoredStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    read_statistics,
    write_statistics,
)

__all__ = [
    "Extrapolation",
    "FrechetReference",
    "FrechetStatistics",
    "Moments",
    "Resampler",
    "ScoreStatistics",
    "StoredStatistics",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "read_statistics",
    "write_statistics",
]
