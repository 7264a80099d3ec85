"""What the JSON files of a Hugging Face folder say about images: mean and std as one normaliser, and the size."""

from pathlib import Path
from typing import Any

from robust_models.checkpoints.ours import MAX_PIXELS
from robust_models.classifier import Normalizer
from robust_models.errors import UserError


def normalizer_of(mean: Any, std: Any, path: Path) -> Normalizer | None:
    """Three numbers each, or one for all channels; None where one is missing."""
    if mean is None or std is None:
        return None
    channels = [[value] * 3 if isinstance(value, int | float) else value for value in (mean, std)]
    if not all(isinstance(v, list) and len(v) == 3 and all(map(_is_number, v)) for v in channels):
        raise UserError(
            f"ckpt: {path}: the image mean and std are {ascii((mean, std))[:100]}, expected three numbers each"
        )
    return Normalizer.parse([*channels[0], *channels[1]])


def normalizer_of_processor(said: dict[str, Any], path: Path) -> Normalizer | None:
    """For pixels in [0,1]; transformers first multiplies pixels in [0,255] by a factor, and may then take 1 away."""
    if not said:
        return None
    if said.get("do_flip_channel_order"):
        raise UserError(
            f"ckpt: {path} wants images in blue, green, red order (do_flip_channel_order), which is not read"
        )
    mean, std = (said.get("image_mean"), said.get("image_std")) if said.get("do_normalize", True) else (0, 1)
    normalizer = normalizer_of(mean, std, path)
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
    if normalizer is None:
        return None
    if not (_is_number(factor) and factor > 0):
        raise UserError(f"ckpt: {path}: rescale_factor is {ascii(factor)[:40]}, expected a number above 0")
    scale, offset = 255 * factor, 1.0 if said.get("rescale_offset") else 0.0
    if abs(scale - 1) < 1e-6 and not (offset or said.get("include_top")):
        return normalizer
    twice = 2 if said.get("include_top") else 1  # EfficientNet's images are divided by their std again
    mean, std = (tuple((m + offset) / scale for m in normalizer.mean), tuple(s**twice / scale for s in normalizer.std))
    return Normalizer.parse([*mean, *std])


def image_size_of(size: Any, path: Path) -> int | None:
    """Of a square image: a number, a pair, or transformers' {"height": ...} or {"shortest_edge": ...}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", [size.get("height"), size.get("width")])
    pair = size if isinstance(size, list) else [size, size]
    if len(pair) != 2 or pair[0] != pair[1]:
        raise UserError(f"ckpt: {path}: images of {ascii(size)[:60]} pixels; only square ones are read")
    if pair[0] is None:
        return None
    if type(pair[0]) is not int or not 0 < pair[0] <= MAX_PIXELS:
        raise UserError(f"ckpt: {path}: images of {ascii(size)[:60]} pixels, expected 1 to {MAX_PIXELS}")
    return pair[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1e6
