"""From an image of any size to a square: the centre, or a random box that is a function of (seed, epoch, number)."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

_AREA = (0.08, 1.0)  # share of the image that a random box covers
_ASPECT = (3 / 4, 4 / 3)  # width / height
_TRIES = 10


def centre_crop(image: np.ndarray, size: int, resize_to: int) -> np.ndarray:
    """uint8 [H,W,3] -> [size,size,3]: the shorter side resized to resize_to pixels, then the centre.

    Cut first and resized once; an image that has the size already stays as it is.
    """
    return resized(image, centre_boxes(np.array([image.shape[:2]]), size, resize_to)[0].tolist(), size)


def centre_boxes(sizes: np.ndarray, size: int, resize_to: int) -> np.ndarray:
    """int64 [n,4] boxes (top, left, height, width) of what centre_crop keeps of images of sizes [n,2]."""
    side = np.rint(sizes.min(1) * size / resize_to).astype(np.int64)
    return np.stack([(sizes[:, 0] - side) // 2, (sizes[:, 1] - side) // 2, side, side], 1)


def resized(image: np.ndarray, box: Sequence[int], size: int) -> np.ndarray:
    """The box (top, left, height, width) of uint8 [H,W,3] as [size,size,3], bilinear with antialiasing."""
    top, left, height, width = box
    if image.shape[:2] == (size, size) and (top, left, height, width) == (0, 0, size, size):
        return image
    edges = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=edges))


def random_boxes(sizes: np.ndarray, seed: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
    """int64 [n,4] boxes (top, left, height, width) in images of sizes [n,2] (height, width) with these numbers [n].

    Area and aspect ratio as in Szegedy et al. 2015 (arXiv:1409.4842) and every ImageNet recipe since: the first of ten
    draws that fits, else the middle square.
    """
    n = len(numbers)
    height, width = sizes.astype(np.int64).T[:, :, None]  # [n,1] each
    area, aspect, down, right = uniforms(seed, epoch, numbers, 4 * _TRIES).reshape(n, 4, _TRIES).transpose(1, 0, 2)
    area = (_AREA[0] + area * (_AREA[1] - _AREA[0])) * height * width
    aspect = np.exp(np.log(_ASPECT[0]) + aspect * np.log(_ASPECT[1] / _ASPECT[0]))
    tall, wide = np.rint(np.sqrt(area / aspect)).astype(np.int64), np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (tall > 0) & (wide > 0) & (tall <= height) & (wide <= width)
    top, left = (down * (height - tall + 1)).astype(np.int64), (right * (width - wide + 1)).astype(np.int64)
    drawn = np.stack([top, left, tall, wide], 2)[np.arange(n), fits.argmax(1)]
    return np.where(fits.any(1, keepdims=True), drawn, centre_boxes(sizes.astype(np.int64), 1, 1))


def uniforms(seed: int, epoch: int, numbers: np.ndarray, draws: int) -> np.ndarray:
    """float64 [n, draws] in [0,1), each a function of (seed, epoch, its number, its column) alone.

    SplitMix64 (Steele et al. 2014) as a hash, so that a whole epoch's draws are one array operation.
    """
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    keys = _mix(state + numbers.astype(np.uint64))[:, None]
    bits = _mix(keys + np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
