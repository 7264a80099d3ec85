"""From features to numbers: small pure steps over mergeable float64 statistics."""

from eval.metrics.frechet import FrechetStatistics, Moments, frechet_distance
from eval.metrics.stored import StoredStatistics, read_statistics, write_statistics

__all__ = [
    "FrechetStatistics",
    "Moments",
    "StoredStatistics",
    "frechet_distance",
    "read_statistics",
    "write_statistics",
]
