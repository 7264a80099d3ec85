"""Pictures that people bring, decoded and made small enough to work on; and the one that the page opens with."""

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refine.studio.tabs import MOST_SIDE
from robust_models.images import open_images
from robust_models.images.codec import decode, decode_alpha
from robust_models.images.pixels import max_bytes

FIRST = "cifar10-test-500.npz", 37  # a horse on a meadow
DOG = 207  # a golden retriever, among ImageNet's classes
_MOST_BYTES = 64 << 20
_one_at_a_time = threading.Lock()  # a photograph takes a GB while it is made small


def most_bytes() -> int:
    """Of a file that is taken."""
    return min(max_bytes(), _MOST_BYTES)


@dataclass(frozen=True)
class Photograph:
    """x_u8 [3,H,W], and what it was before."""

    x_u8: Tensor
    was: tuple[int, int]  # height, width
    is_cropped: bool


def read_photograph(data: bytes, name: str, side: int, *, square: bool) -> Photograph:
    """An image file, upright, on white where it is transparent, its longer side `side` pixels at most.

    square: its middle, exactly side x side. UserError, which begins with the name, where it is no image.
    """
    with _one_at_a_time:
        pixels = _on_white(data, name)
        height, width = pixels.shape[:2]
        image = Image.fromarray(pixels)
        if square:
            edge = min(height, width)
            left, top = (width - edge) // 2, (height - edge) // 2
            image = _scaled(image.crop((left, top, left + edge, top + edge)), (side, side))
        elif max(height, width) > min(side, MOST_SIDE):
            scale = min(side, MOST_SIDE) / max(height, width)
            image = _scaled(image, (max(1, round(width * scale)), max(1, round(height * scale))))
        return Photograph(_as_tensor(np.asarray(image)), (height, width), square and height != width)


def _on_white(data: bytes, name: str) -> np.ndarray:
    """uint8 [H,W,3]."""
    pixels, alpha = _in_8_bits(decode(data, name)), decode_alpha(data, name)
    if alpha is None:
        return np.ascontiguousarray(pixels)
    opaque = _in_8_bits(alpha)[..., None].astype(np.uint16)
    return ((opaque * pixels + (255 - opaque) * 255 + 127) // 255).astype(np.uint8)


def _in_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class First:
    """What the page opens with."""

    x_u8: Tensor  # [3,H,W]
    mask: Tensor  # [H,W], 0 or 255
    label: int
    options: dict[str, float]  # of the tab "paint"
    credit: str


@cache
def first_photograph(image_size: int, classes: int) -> First:
    """One of the size that the classifier was made for."""
    if image_size <= 64:
        from robust_models.runtime.files import PRETRAINED

        name, number = FIRST
        x_u8 = open_images(PRETRAINED / name).read(number, number + 1)[0]
        if image_size != x_u8.shape[1]:
            image = Image.fromarray(x_u8.permute(1, 2, 0).numpy())
            x_u8 = _as_tensor(np.asarray(_scaled(image, (image_size, image_size))))
        credit = f"Image {number} of the CIFAR-10 test images that come with the package"
    else:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
        x_u8 = read_photograph(path.read_bytes(), path.name, min(image_size, MOST_SIDE), square=True).x_u8
        credit = "Grace Hopper, 1984, by J. S. Davis, US Navy (public domain), as it comes with matplotlib"
    scale = x_u8.shape[1] / 32
    options = {"steps": 20, "eps": round(8 * scale, 1), "step_size": round(0.4 * scale, 2)}
    label = DOG if classes > DOG else min(5, classes - 1)
    return First(x_u8, _oval(x_u8.shape[1], x_u8.shape[2]), label, options, credit)


def _oval(height: int, width: int) -> Tensor:
    """A mask with an oval right of the middle."""
    y = (torch.arange(height) + 0.5).view(-1, 1) / height
    x = (torch.arange(width) + 0.5).view(1, -1) / width
    inside = ((x - 0.7) / 0.28) ** 2 + ((y - 0.35) / 0.3) ** 2 <= 1
    return inside.to(torch.uint8) * 255
