"""Pixels as numbers: what a file holds (uint8, uint16, float in [0,1]) and float in [0,1]; how many are accepted."""

import os
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError

Depth = Literal["uint8", "uint16", "float32"]
DTYPES: dict[Depth, torch.dtype] = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}
_WHITE = {torch.uint8: 255, torch.uint16: 65535}
_CHUNK_BYTES = 16 << 20
_MAX_PIXELS = 1 << 26  # 8192 x 8192: a bomb of 13000 x 13000 is refused, the photograph of a 60-megapixel camera is not
_MAX_BYTES = 256 << 20


def to_float(x: Tensor) -> Tensor:
    """uint8 or uint16 -> float32 in [0,1]; floats, which are in [0,1] already, pass through."""
    return x if x.is_floating_point() else x.float() / _WHITE[x.dtype]


def from_float(x: Tensor, depth: Depth) -> Tensor:
    """Float [0,1] -> `depth`, clipped and rounded half to even (truncating would shift every image by half a level).

    The inverse of `to_float`: every uint8 and uint16 level survives the trip.
    """
    dtype = DTYPES[depth]
    x = (x if x.dtype == torch.float64 else x.float()).clamp(0, 1)
    return x.to(dtype) if depth == "float32" else (x * _WHITE[dtype]).round().to(dtype)


def to_u8(x: Tensor) -> Tensor:
    """Float [0,1] -> uint8, clipped and rounded half to even."""
    return from_float(x, "uint8")


def depth_of(dtype: np.dtype) -> Depth | None:
    """How pixels stored as `dtype` are read; None for a type that no image set here has."""
    if dtype in (np.uint8, np.uint16):
        return "uint8" if dtype == np.uint8 else "uint16"
    return "float32" if dtype in (np.float16, np.float32, np.float64) else None


def check_range(read: Callable[[int, int], np.ndarray], count: int, row_bytes: int, *, source: str) -> None:
    """UserError unless all of `read(0, count)`, floats, lie in [0,1]; some megabytes are in memory at a time."""
    step = max(1, _CHUNK_BYTES // row_bytes)
    low, high = np.inf, -np.inf
    for start in range(0, count, step):
        part = read(start, min(start + step, count))
        if np.isnan(part).any():
            first = start + int(np.isnan(part.reshape(len(part), -1)).any(1).argmax())
            raise UserError(
                f"{source}: image {first} holds NaN; pixels must be numbers in [0,1]: leave such images out"
            )
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if low < 0 or high > 1:
        remedy = "(x + 1) / 2" if -1 <= low < 0 and high <= 1 else "x / 255" if 0 <= low and high <= 255 else None
        advice = f"store {remedy}" if remedy else "rescale or clip them"
        raise UserError(f"{source}: values run from {low:.6g} to {high:.6g}; expected floats in [0,1]: {advice}")


def max_pixels() -> int:
    """How many pixels one image may have; the environment variable BIGROC_MAX_PIXELS raises or lowers it."""
    return _limit("BIGROC_MAX_PIXELS", _MAX_PIXELS)


def max_bytes() -> int:
    """How many bytes one file, entry or label array that must be in memory at once may have: BIGROC_MAX_BYTES."""
    return _limit("BIGROC_MAX_BYTES", _MAX_BYTES)


def check_pixels(height: int, width: int, *, source: str) -> None:
    """UserError, which begins with `source`, for an image of more than max_pixels(); for use before it is decoded."""
    if height * width > max_pixels():
        raise UserError(
            f"{source}: {width}x{height} is {height * width:,} pixels; at most {max_pixels():,} are read: "
            f"resize it, or set BIGROC_MAX_PIXELS={height * width} if it is right"
        )


def _limit(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit() and 0 < len(text) < 19):
        raise UserError(f"{variable}: {text[:40]!r} is not a whole number")
    return int(text or default)
