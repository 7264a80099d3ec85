"""Pixels as numbers: what a file holds (uint8, uint16, float in [0,1]) and float in [0,1]; how many are accepted."""

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError

Depth = Literal["uint8", "uint16", "float32"]
DTYPES: dict[Depth, torch.dtype] = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}
_WHITE = {torch.uint8: 255, torch.uint16: 65535}
_CHUNK_BYTES = 16 << 20
_ROUNDING, _ROUNDING_HALF = 1e-5, 1e-3  # beyond [0,1] without meaning; of float16
_SLIGHTLY = 0.05  # beyond [0,1] as an overshoot of filters, which clipping mends
_MAX_PIXELS = 1 << 26  # 8192 x 8192: a bomb of 13000 x 13000 is refused, the photograph of a 60-megapixel camera is not
_MAX_BYTES = 256 << 20
GREY_LEVEL = 1 / 255  # how far outside the range of pixels rounding may put one
RESCALE = "clamp them, or map them to [0, 1] first: (x + 1) / 2 of pixels in [-1, 1], x / 255 of pixels in [0, 255]"


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
    """UserError unless all of `read(0, count)`, floats, lie in [0,1] but for rounding; some MiB are read at a time.

    What rounding left outside (1e-5; 1e-3 of float16) is clipped when it is read.
    """
    step = max(1, _CHUNK_BYTES // row_bytes)
    low, high, rounding = np.inf, -np.inf, _ROUNDING
    for start in range(0, count, step):
        part = read(start, min(start + step, count))
        if np.isnan(part).any():
            first = start + int(np.isnan(part.reshape(len(part), -1)).any(1).argmax())
            raise UserError(
                f"{source}: image {first} holds NaN; pixels must be numbers in [0,1]: leave such images out"
            )
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        rounding = _ROUNDING_HALF if part.dtype == np.float16 else _ROUNDING
    if low < -rounding or high > 1 + rounding:
        raise UserError(
            f"{source}: values run from {low:.9g} to {high:.9g}; expected floats in [0,1]: {_remedy(low, high)}"
        )


def _remedy(low: float, high: float) -> str:
    """What would bring the whole range into [0,1], where one convention explains it."""
    if low >= -_SLIGHTLY and high <= 1 + _SLIGHTLY:
        return "clip them: numpy.clip(x, 0, 1)"
    if low >= 0 and high <= 65535:
        return "rescale or clip them" if high <= 2 else "store x / 255" if high <= 255 else "store x / 65535"
    if low >= -1 and high <= 1:
        return "store (x + 1) / 2"
    if low >= -128 and high <= 127 and (low < -16 or high > 16):
        return "store (x + 128) / 255"
    normalized = "; they look normalized: store x * std + mean" if max(-low, high) < 5 else ""
    return f"rescale or clip them{normalized}"


def max_pixels() -> int:
    """How many pixels one image may have; the environment variable BIGROC_MAX_PIXELS raises or lowers it."""
    return _limit("BIGROC_MAX_PIXELS", _MAX_PIXELS)


def max_bytes() -> int:
    """How many bytes one file, entry or label array that must be in memory at once may have: BIGROC_MAX_BYTES."""
    return _limit("BIGROC_MAX_BYTES", _MAX_BYTES)


def too_large(what: str, size: int) -> str:
    """The message for something of `size` bytes that must be in memory at once."""
    return f"{what}; at most {max_bytes():,} are read at once: set BIGROC_MAX_BYTES={size} if it is right"


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


def check_images(
    x: Any, *, name: str = "x", channels: int | None = None, low: float = 0, high: float = 1, advice: str = RESCALE
) -> None:
    """UserError unless x is a float tensor [N,C,H,W] with pixels in [low, high] and, if given, `channels` channels.

    A grey level beyond the range is taken for rounding. `name` and `advice` begin and end the message.
    """
    shape = f"[N,{channels or 'C'},H,W]"
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or x.shape[1] != (channels or x.shape[1]):
        came = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"{name}: {came}; expected float tensors {shape} in [{low:g}, {high:g}] (robust_models.to_float makes them "
            "of uint8)"
        )
    if x.numel() == 0:
        return
    lowest, highest = (value.item() for value in x.aminmax())
    slack = GREY_LEVEL * (high - low)
    if not (low - slack <= lowest and highest <= high + slack):  # NaN compares false
        raise UserError(f"{name}: pixels run from {lowest:.4g} to {highest:.4g}, outside [{low:g}, {high:g}]; {advice}")
