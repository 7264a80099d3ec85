"""Drawings: image files of any size and shape, with or without a background, as images of the classifier's size."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_models.grids import fitted
from robust_models.images import IMAGE_SUFFIXES, open_images, to_float
from robust_models.images.codec import decode, decode_alpha
from robust_models.images.folder_files import find_files, read_file, stem

_WHITE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class Drawings:
    """N drawings; read(i) is drawing i, [1,3,side,side] float in [0,1]."""

    names: list[str]
    read: Callable[[int], Tensor]


def open_drawings(path: Path, side: int) -> Drawings:
    """An image file, a folder of such (of any sizes), or an image set of one file. UserError where there is none."""
    if path.is_dir() and (files := find_files(path, IMAGE_SUFFIXES).files):
        return _files([path / file for file in files], [stem(file) for file in files], side)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return _files([path], [path.stem], side)
    images = open_images(path)
    return Drawings(list(images.names), lambda i: fitted(to_float(images.read(i, i + 1)), side))


def _files(files: list[Path], names: list[str], side: int) -> Drawings:
    for file in files:
        _on_white(file)  # a broken one is refused before any work
    return Drawings(names, lambda i: fitted(_on_white(files[i]), side))


def _on_white(file: Path) -> Tensor:
    """The drawing [1,3,H,W] in [0,1]; where it is transparent, the white paper shows."""
    data = read_file(file)
    colour, alpha = decode(data, str(file)), decode_alpha(data, str(file))
    x = _channels(colour)
    if alpha is None:
        return x
    opaque = _channels(alpha[..., None])
    return opaque * x + (1 - opaque)


def _channels(pixels: np.ndarray) -> Tensor:
    """[H,W,C] of 8 or 16 bits -> [1,C,H,W] in [0,1]."""
    return torch.from_numpy(pixels.astype(np.float32) / _WHITE[pixels.dtype]).permute(2, 0, 1).unsqueeze(0)
