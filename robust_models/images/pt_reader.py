"""The places of a torch.save zip's tensors in the file; none of them is read, and no code in the file is run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_models.checkpoints.torch_format import StoredTensor, read_torch_file
from robust_models.errors import UserError
from robust_models.images.arrays import AtOffset, Rows


@dataclass(frozen=True)
class Place:
    """A tensor in the file."""

    path: Path
    start: int  # byte of its first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: np.dtype

    def rows(self) -> Rows:
        """Reads along the first axis. UserError where a row is not one piece of the file."""
        axes = range(1, len(self.shape))
        order = (0, *sorted(axes, key=lambda axis: -self.strides[axis]))  # of axes in the file: channels_last and such
        stored = tuple(self.shape[axis] for axis in order)
        if tuple(self.strides[axis] for axis in order) != _plain_strides(stored):
            raise UserError(f"{self.path}: the tensor is not in one piece; save images.contiguous()")
        rows = AtOffset(self.path, self.start, stored, self.dtype)
        return lambda first, stop: rows(first, stop).transpose(np.argsort(order))


def read_places(path: Path) -> Any:
    """What torch.save wrote to `path`, each tensor of a zip as its Place; other objects are inert records.

    The tensors of files of torch before 1.6, no zips, are read. UserError where the file is broken, or holds numbers
    that no image has.
    """
    try:
        content = read_torch_file(path, lazy=True)
    except UserError as error:
        raise UserError(str(error).removeprefix("ckpt: ")) from error
    if isinstance(content, dict):
        return {key: _placed(value) for key, value in content.items()}
    return _placed(content)


def _placed(value: Any) -> Any:
    """The Place of a tensor that is in the file; anything else as it is."""
    if not isinstance(value, StoredTensor):
        return value
    empty = torch.empty(0, dtype=value.dtype)
    try:
        dtype = empty.numpy().dtype
    except TypeError:  # numpy has no such numbers
        dtype = np.dtype(complex)
    if dtype.kind not in "uif":
        name = empty.type().removeprefix("torch.").removesuffix("Tensor")
        raise UserError(f"{value.path}: holds a tensor of {name} numbers; save uint8, uint16, or floats in [0,1]")
    return Place(value.path, value.start, value.shape, value.strides, dtype)


def _plain_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
