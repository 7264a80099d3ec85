"""Random access to labelled images of any sizes: in an opened image set, or in files, decoded when asked for."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from robust_models.images import ImageSet, to_float, to_u8
from robust_models.images.codec import decode
from robust_models.images.encoded import EncodedImages
from robust_models.images.folder_files import read_file


@dataclass(frozen=True)
class Store(ABC):
    """Random access to labelled images; labels int64 [N]."""

    labels: np.ndarray

    @abstractmethod
    def image(self, number: int) -> np.ndarray:
        """uint8 [H,W,3]."""

    def read(self, numbers: np.ndarray) -> list[np.ndarray]:
        return [self.image(number) for number in numbers.tolist()]


@dataclass(frozen=True)
class FileStore(Store):
    """Image files below a folder, which may differ in size; a broken one is met when it is read."""

    root: Path
    files: Sequence[str]

    def image(self, number: int) -> np.ndarray:
        file = os.path.join(self.root, self.files[number])
        return as_u8(decode(read_file(file), file))


@dataclass(frozen=True)
class SetStore(Store):
    """An image set of any kind, whose images were checked when it was opened."""

    images: ImageSet

    def image(self, number: int) -> np.ndarray:
        return self.read(np.array([number]))[0]

    def read(self, numbers: np.ndarray) -> list[np.ndarray]:
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        return [image for run in runs if len(run) for image in self._run(int(run[0]), int(run[-1]) + 1)]

    def _run(self, start: int, stop: int) -> list[np.ndarray]:
        """Neighbours, which every kind of set reads together."""
        if stop - start == 1 and isinstance(self.images, EncodedImages):  # without threads for one image
            return [as_u8(decode(self.images.encoded(start, stop)[0](), f"{self.images.path}: image {start}"))]
        return list(to_u8(to_float(self.images.read(start, stop))).permute(0, 2, 3, 1).numpy())


def as_u8(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8, rounded half to even."""
    return pixels if pixels.dtype == np.uint8 else to_u8(to_float(torch.from_numpy(pixels))).numpy()
