"""ViTs and ConvNeXts of timm whose patches are cut by a ConvStem (Singh, Croce, Hein 2023, arXiv:2303.01870)."""

import re
from dataclasses import replace
from itertools import count

import torch

from robust_models.architectures.conv_stem import PLACES
from robust_models.checkpoints.infer.imagenet import library_network
from robust_models.checkpoints.infer.match import MAX_WIDTH, Match, shape, size
from robust_models.checkpoints.subtrees import State

MAX_CONVOLUTIONS = 20
_PATCH = {"patch_embed.proj": 16, "stem": 4}  # pixels of a side of the patches that the stem replaces


def conv_stem(state: State) -> Match | None:
    """The library's network with its patches in place of the stem, and the stem as an option of it."""
    for place in PLACES:
        named = _with_short_names(state, place)
        convolutions = list(_convolutions(named, place))
        if not convolutions or convolutions[0][1] != 3 or shape(named, f"{place}.0.weight")[1:2] != (3,):
            continue
        stem = {name for name in named if name.startswith(f"{place}.")}
        body = {name: tensor for name, tensor in named.items() if name not in stem}
        match = library_network({**_patches(place, convolutions[-1][0]), **body})
        if match is None:
            continue
        options = {
            "convolutions": convolutions,
            "norm": "batch" if f"{place}.1.running_mean" in named else "layer",
            "bias": f"{place}.0.bias" in named,
        }
        return replace(match, state=named, options={**match.options, "conv_stem": options})
    return None


def _with_short_names(state: State, place: str) -> State:
    """The authors' stems hold the row of layers under the name `stem` once more."""
    return {re.sub(rf"^{re.escape(place)}\.stem\.", f"{place}.", name): tensor for name, tensor in state.items()}


def _convolutions(state: State, place: str) -> list[list[int]]:
    """[channels, kernel] of the convolutions, each followed by a norm and GELU; [] where the stem is none of these."""
    found: list[list[int]] = []
    for i in count(0, 3):
        kernel = shape(state, f"{place}.{i}.weight")
        if len(kernel) != 4 or len(found) >= MAX_CONVOLUTIONS:
            break
        if kernel[2:] not in ((3, 3), (1, 1)) or not 0 < kernel[0] <= MAX_WIDTH:
            return []
        if kernel[2] == 3 and not size(state, f"{place}.{i + 1}.weight"):
            return []
        found.append([kernel[0], kernel[2]])
    return found


def _patches(place: str, width: int) -> State:
    """What a library's network has there, without memory."""
    side = _PATCH[place]
    shapes: dict[str, tuple[int, ...]] = {"weight": (width, 3, side, side), "bias": (width,)}
    if place == "stem":
        shapes = {f"0.{name}": numbers for name, numbers in shapes.items()}
        shapes |= {"1.weight": (width,), "1.bias": (width,)}
    return {f"{place}.{name}": torch.empty(numbers, device="meta") for name, numbers in shapes.items()}
