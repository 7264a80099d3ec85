"""Image sets that are one array in a file (npz, npy, pt): rows are read by their place in it, never the whole array.

Not mapped: the pages of a mapping count as the process's memory, and grow with what was read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.image_set import Add, ImageSet, Numbered
from robust_models.images.pixels import depth_of

Rows = Callable[[int, int], np.ndarray]  # (start, stop) -> those images as they are stored


class Header(NamedTuple):
    """What an .npy header says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


@dataclass(frozen=True)
class AtOffset:
    """Rows of a C-ordered array that lies uncompressed in a file."""

    path: Path
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, start: int, stop: int) -> np.ndarray:
        per_row = int(np.prod(self.shape[1:]))
        at = self.offset + start * per_row * self.dtype.itemsize
        rows = np.fromfile(self.path, self.dtype, (stop - start) * per_row, offset=at)
        if len(rows) < (stop - start) * per_row:
            raise UserError(f"{self.path}: images {start} to {stop - 1} are gone; was the file cut while in use?")
        return rows.reshape(-1, *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class ArrayImages(ImageSet):
    """Images in one array, [N,H,W,3] or [N,3,H,W], of uint8, uint16, or floats in [0,1]."""

    rows: Rows
    stored: np.dtype  # float16 and float64 are read as float32 and written as they were
    channels_first: bool

    def read(self, start: int, stop: int) -> Tensor:
        pixels = self.rows(start, stop)
        pixels = pixels if self.channels_first else pixels.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=self.depth))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the whole array, as it is stored."""
        height, width = self.size
        return (len(self), 3, height, width) if self.channels_first else (len(self), height, width, 3)


class Described(NamedTuple):
    """The fields of an ArrayImages that its array decides."""

    names: Numbered
    size: tuple[int, int]
    channels_first: bool
    about: str


def describe(shape: tuple[int, ...], dtype: np.dtype, *, kind: str, source: str, either_layout: bool) -> Described:
    """UserError, which begins with `source`, where the array holds no images that are read here.

    either_layout: [N,3,H,W] is accepted too; an array that fits both has its channels last.
    """
    layouts = "[N,H,W,3] or [N,3,H,W]" if either_layout else "[N,H,W,3]"
    expected = f"expected {layouts} of uint8, uint16, or floats in [0,1], with N > 0"
    if dtype.hasobject:
        raise UserError(f"{source} is an array of pickled objects, which are never opened; {expected}")
    channels_last = len(shape) == 4 and shape[3] == 3
    channels_first = either_layout and not channels_last and len(shape) == 4 and shape[1] == 3
    if depth_of(dtype) is None or not (channels_last or channels_first) or 0 in shape:
        grey = len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]))
        advice = "; repeat a grey channel three times" if grey and depth_of(dtype) else ""
        raise UserError(f"{source} is {dtype} {list(shape)}; {expected}{advice}")
    height, width = shape[2:] if channels_first else shape[1:3]
    about = f"{kind}, {dtype.name} {'[N,3,H,W]' if channels_first else '[N,H,W,3]'}"
    return Described(Numbered(shape[0]), (height, width), channels_first, about)


def check_labels(labels: np.ndarray, count: int, *, source: str) -> np.ndarray:
    """int64 [count]; UserError, which begins with `source`, for another number of labels or something else."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{source} is {labels.dtype} {list(labels.shape)}; expected one integer label for each of {count} images"
        )
    return labels.astype(np.int64)


def read_header(stream: IO[bytes]) -> Header:
    """Reads an .npy header and leaves the stream where its numbers begin. ValueError for something else."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy version {version} is not of plain numbers")
    shape, fortran_order, dtype = readers[version](stream)
    return Header(shape, dtype, fortran_order)


def write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def row_writer(stream: IO[bytes], dtype: np.dtype, *, channels_first: bool) -> Add:
    """Appends batches [n,3,H,W] to `stream`, as numbers of `dtype` in the layout asked for."""

    def add(x: Tensor) -> None:
        pixels = x.cpu().numpy()
        pixels = pixels if channels_first else pixels.transpose(0, 2, 3, 1)
        stream.write(np.ascontiguousarray(pixels, dtype=dtype).data)

    return add


@contextmanager
def opened_rows(file: Path, shape: Sequence[int], dtype: np.dtype, *, channels_first: bool) -> Iterator[Add]:
    """An .npy at `file` whose rows are added in turn."""
    with file.open("wb") as stream:
        write_header(stream, tuple(shape), dtype)
        yield row_writer(stream, dtype, channels_first=channels_first)
