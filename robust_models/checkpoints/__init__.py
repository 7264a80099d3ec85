"""Classifiers on disk."""

from robust_models.checkpoints.load import embedded_names, find, load
from robust_models.checkpoints.ours import save

__all__ = ["embedded_names", "find", "load", "save"]
