"""Small stand-ins: a classifier with random weights, images that it can learn in a few steps, a disk that is full."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from robust_models import Description, Normalizer, RobustClassifier
from robust_models.datasets import AnyDataset
from train.loaders.base import Loader, LoaderName, LoaderSettings
from train.start import make_loader

CLASSES = ("airplane", "automobile", "bird")
SIZE = 16  # pixels


def tiny_classifier(arch: str = "preact_resnet10_w16") -> RobustClassifier:
    """Random weights, 3 classes, 16x16 pixels, a normaliser that matters; eval mode."""
    normalizer = Normalizer((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return RobustClassifier.from_description(Description(arch, CLASSES, SIZE, normalizer=normalizer)).eval()


def tiny_pixels(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n,16,16,3] whose brightest channel is the label [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    pixels = rng.integers(0, 120, (n, SIZE, SIZE, 3))
    pixels[np.arange(n), :, :, labels] += 100
    return pixels.astype(np.uint8), labels.astype(np.int64)


def loader_of(name: LoaderName, data: AnyDataset, **settings: Any) -> Loader:
    """A loader with these LoaderSettings."""
    return make_loader(name, data, LoaderSettings(**settings))


def fill(disk: Path, *, free_kb: int = 0) -> Path:
    """Writes a file that leaves this much room on a file system."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while (more := shutil.disk_usage(disk).free - 1024 * free_kb) > 0:
            try:
                file.write(b"\0" * more)
                os.fsync(file.fileno())  # on ext4 a file takes some of its blocks only now
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break
    return filler
