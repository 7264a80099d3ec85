"""Labelled image data by one string, in memory or read as it is asked for."""

from robust_models.datasets.dataset import AnyDataset, Dataset, LazyDataset
from robust_models.datasets.folders import RESTRICTED_IMAGENET, Split
from robust_models.datasets.sources import load_dataset, open_dataset, open_whole
from robust_models.labels import CIFAR10_CLASSES

__all__ = [
    "CIFAR10_CLASSES",
    "RESTRICTED_IMAGENET",
    "AnyDataset",
    "Dataset",
    "LazyDataset",
    "Split",
    "load_dataset",
    "open_dataset",
    "open_whole",
]
