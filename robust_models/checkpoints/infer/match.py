"""What the readers of tensor names share: the answer they give, and how they look at names and shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from robust_models.checkpoints.subtrees import State
from robust_models.classifier import Normalizer

MAX_BLOCKS = 200  # WideResNet-604; a hostile file may name a million
MAX_WIDTH = 9999  # what names of architectures can say

Depths = tuple[int, ...]

RESNETS: dict[tuple[str, Depths], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}


@dataclass(frozen=True)
class Match:
    """An architecture that the tensors fit by names and shapes, and the tensors under its names for them."""

    arch: str
    state: State
    activation: str | None = None  # the family's usual one (it leaves no trace in the tensors); None: they vary
    image_size: int | None = None  # pixels, where the tensors show it (position embeddings)
    usual_size: int | None = None  # pixels of the images that this network is usually made for
    also: tuple[str, ...] = ()  # other architectures with the same tensors, which arch= chooses
    options: dict[str, Any] = field(default_factory=dict)  # what a library's builder needs besides the classes
    normalizer: Normalizer | None = None  # what the family's own code does to its pixels, and never stores


def num_classes(state: Mapping[str, Tensor]) -> int:
    """Rows of the last matrix, which is the head of every family, else of the last 1x1 convolution; 0 without any."""
    matrices = [len(tensor) for tensor in state.values() if tensor.ndim == 2]
    convolutions = [len(tensor) for tensor in state.values() if is_head(tensor)]
    return next(reversed(matrices or convolutions), 0)


def is_head(tensor: Tensor) -> bool:
    """Whether the shape is that of a linear layer's or a 1x1 convolution's weights."""
    return tensor.ndim == 2 or (tensor.ndim == 4 and tensor.shape[2:] == (1, 1))


def shape(state: State, name: str) -> tuple[int, ...]:
    """() where there is no such tensor."""
    return tuple(state[name].shape) if name in state else ()


def size(state: State, name: str, axis: int = 0) -> int:
    """Along one axis; 0 where there is no such tensor or axis."""
    return dict(enumerate(shape(state, name))).get(axis, 0)


def depths(state: State, pattern: str, *, first: int = 1) -> Depths:
    """Blocks of stages first, first + 1, ... by the names that match (stage, block); () where numbers are left out."""
    found = {(int(match[1]), int(match[2])) for name in state if (match := re.fullmatch(pattern, name))}
    if len(found) > MAX_BLOCKS:
        return ()
    stages = range(first, max((stage for stage, _ in found), default=first - 1) + 1)
    per_stage = tuple(sum(stage == s for stage, _ in found) for s in stages)
    whole = {(s, block) for s, depth in zip(stages, per_stage, strict=True) for block in range(depth)} == found
    return per_stage if whole else ()


def renamed(state: State, outer: dict[str, str], pattern: str, inner: dict[str, str]) -> State:
    """The blocks of all stages in one row, as ours are; a name that is not known stays as it is."""
    places = sorted({(int(match[1]), int(match[2])) for name in state if (match := re.fullmatch(pattern, name))})
    index = {place: i for i, place in enumerate(places)}
    result: State = {}
    for name, tensor in state.items():
        module, _, tensor_name = name.rpartition(".")
        if match := re.fullmatch(pattern, module):
            part = inner.get(match[3])
            new = part and f"blocks.{index[int(match[1]), int(match[2])]}.{part}.{tensor_name}"
        else:
            new = f"{outer[module]}.{tensor_name}" if module in outer else None
        result[new or name] = tensor
    return result


def residual_block(state: State) -> str:
    """ "bottleneck" or "basic", by the first block under torchvision's names."""
    return "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
