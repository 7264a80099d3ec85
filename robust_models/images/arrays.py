"""Image sets that are one array in a file (npz, npy, pt): rows are read by their place in it, never the whole array.

Not mapped: the pages of a mapping count as the process's memory, and grow with what was read.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.image_set import Add, ImageSet, Numbered, Sample, Split, ranks
from robust_models.images.pixels import Depth, check_pixels, depth_of

Rows = Callable[[int, int], np.ndarray]  # (start, stop) -> those images as they are stored

_MAX_ELEMENTS = 1 << 48  # of an array: beyond, products of lengths overflow


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
        per_row = math.prod(self.shape[1:])
        at = self.offset + start * per_row * self.dtype.itemsize
        try:
            rows = np.fromfile(self.path, self.dtype, (stop - start) * per_row, offset=at)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if len(rows) < (stop - start) * per_row:
            raise UserError(f"{self.path}: images {start} to {stop - 1} are gone; was the file cut while in use?")
        return rows.reshape(-1, *self.shape[1:])


class Layout(NamedTuple):
    """Where an array of images has its channels, and how many: 1 is grey, 4 has alpha."""

    axis: Literal[1, 3] | None  # None: [N,H,W]
    channels: Literal[1, 3, 4]

    def __str__(self) -> str:
        return {None: "[N,H,W]", 1: f"[N,{self.channels},H,W]", 3: f"[N,H,W,{self.channels}]"}[self.axis]

    @property
    def channels_first(self) -> bool:
        """Whether a refined copy, which has three channels, is [N,3,H,W]."""
        return self.axis == 1

    def as_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Rows as they are stored -> [n,3,H,W]: grey three times, alpha left out."""
        pixels = pixels[:, None] if self.axis is None else pixels if self.axis == 1 else pixels.transpose(0, 3, 1, 2)
        return np.repeat(pixels, 3, axis=1) if self.channels == 1 else pixels[:, :3]


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """How an array of this shape holds images; None where it does not.

    Three channels come before one and four, the last axis before the second. Without an axis of channels, an array is
    grey images, except where it could as well be one image of colour or grey.
    """
    if len(shape) == 3:
        return None if shape[-1] in (1, 3, 4) or shape[0] in (3, 4) else Layout(None, 1)
    if len(shape) != 4:
        return None
    fits = (Layout(axis, channels) for channels in (3, 4, 1) for axis in (3, 1) if shape[axis] == channels)
    return next(fits, None)


@dataclass(frozen=True, kw_only=True)
class ArrayImages(ImageSet):
    """Images in one array of uint8, uint16, or floats in [0,1]; see Layout for the shapes."""

    rows: Rows
    stored: np.dtype  # float16 and float64 are read as float32 and written as they were
    layout: Layout

    def read(self, start: int, stop: int) -> Tensor:
        """[n,3,H,W]. UserError where the file was cut or removed since it was opened."""
        pixels = np.ascontiguousarray(self.layout.as_rgb(self.rows(start, stop)), dtype=self.depth)
        return torch.from_numpy(np.clip(pixels, 0, 1) if self.depth == "float32" else pixels)

    @property
    def channels_first(self) -> bool:
        """Of the refined copy."""
        return self.layout.channels_first

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the refined copy's whole array: of three channels, where the source has them."""
        height, width = self.size
        return (len(self), 3, height, width) if self.channels_first else (len(self), height, width, 3)


class Picked(NamedTuple):
    """The rows of a sample."""

    rows: Rows
    numbers: np.ndarray  # int64 [n], which ascend
    places: np.ndarray  # int64 [n], in the order of the sample

    @property
    def names(self) -> Numbered:
        """Of the sample's images."""
        return Numbered(len(self.numbers))

    def labels(self, labels: np.ndarray | None) -> np.ndarray | None:
        """Those of the sample among the labels of all."""
        return None if labels is None else labels[self.numbers]


def pick(rows: Rows, count: int, labels: np.ndarray | None, sample: Sample) -> Picked:
    """The sample's rows of an array of `count` images with these labels; no others are read through them."""
    order, size = sample.order(labels), sample.size(count)
    numbers = np.arange(size) if order is None or size == count else np.sort(order[:size])

    def picked(start: int, stop: int) -> np.ndarray:
        runs = np.split(numbers[start:stop], np.flatnonzero(np.diff(numbers[start:stop]) != 1) + 1)
        return np.concatenate([rows(int(run[0]), int(run[-1]) + 1) for run in runs])

    own_order = int(numbers[-1]) == size - 1
    return Picked(rows if own_order else picked, numbers, ranks(numbers, order))


class Described(NamedTuple):
    """The fields of an ArrayImages that its array decides."""

    size: tuple[int, int]
    layout: Layout
    depth: Depth
    about: str
    notes: tuple[str, ...]


def describe(shape: tuple[int, ...], dtype: np.dtype, *, kind: str, source: str) -> Described:
    """What an array of images holds. UserError, which begins with `source`, where these are no images read here."""
    layouts = "[N,H,W,3]" if kind == "npz" else "[N,H,W,3] or [N,3,H,W]"
    expected = f"expected {layouts} of uint8, uint16, or floats in [0,1], with N > 0"
    if dtype.hasobject:
        raise UserError(f"{source} is an array of pickled objects, which are never opened; {expected}")
    depth, layout = depth_of(dtype), layout_of(shape)
    if depth is None or layout is None or 0 in shape:
        one_image = depth is not None and 0 not in shape and len(shape) in (2, 3)
        advice = "; if it is one image, save images[None]" if one_image else ""
        advice += "; if these are grey images, save images[:, None]" if one_image and len(shape) == 3 else ""
        raise UserError(f"{source} is {dtype} {list(shape)}; {expected}{advice}")
    height, width = shape[2:] if layout.axis == 1 else shape[1:3]
    check_pixels(height, width, source=source)
    notes: tuple[str, ...] = ()
    if layout.channels != 3 or (kind == "npz" and layout.axis == 1):
        kinds = {1: "grey, read as RGB", 3: "channels first", 4: "RGBA, read without alpha"}
        understood = f"{shape[0]:,} images of {width}x{height}, {kinds[layout.channels]}"
        notes = (f"{source} is {dtype} {list(shape)}, understood as {layout}: {understood}",)
    return Described((height, width), layout, depth, f"{kind}, {dtype.name} {layout}", notes)


_IMAGE_NAMES = ("arr_0", "images", "image", "imgs", "data", "samples", "x")
_LABEL_NAMES = ("arr_1", "labels", "label", "targets", "target", "y")
_PARTS: dict[Split, tuple[str, ...]] = {"train": ("", "train", "test", "val"), "test": ("", "test", "val", "train")}


class Chosen(NamedTuple):
    """The names of a file's images and labels, and a note where these are not the usual ones."""

    images: str
    labels: str | None
    notes: tuple[str, ...]


def choose_arrays(names: Sequence[str], split: Split, *, source: str, usual: str) -> Chosen | None:
    """Which arrays of a file hold the images and labels, by their names; None where none is known.

    Beside the `usual` name: images, data, x, ... with labels, targets, y, ...; all of these also by parts, as in
    Keras's x_train and MedMNIST's test_images, of which that of `split` is taken.
    """
    known = {_part_and_name(name): name for name in reversed(names)}
    found = [(part, known[part, name]) for part in _PARTS[split] for name in _IMAGE_NAMES if (part, name) in known]
    if not found:
        return None
    part, images = found[0]
    labels = next((known[part, name] for name in _LABEL_NAMES if (part, name) in known), None)
    if images == usual:
        return Chosen(images, labels, ())
    others = [name for name in names if name not in (images, labels)]
    more = f"; not read: {', '.join(others)[:200]}" if others else ""
    taken = f"{images} taken as the images, {labels or 'nothing'} as the labels"
    return Chosen(images, labels, (f"{source}: {taken}{more}",))


def _part_and_name(name: str) -> tuple[str, str]:
    """ "x_train", "train_x" -> ("train", "x")."""
    lower = name.lower()
    for part in ("train", "test", "val"):
        if lower.endswith(f"_{part}") or lower.startswith(f"{part}_"):
            return part, lower.removesuffix(f"_{part}").removeprefix(f"{part}_")
    return "", lower


def check_labels(labels: np.ndarray, count: int, *, source: str) -> np.ndarray:
    """int64 [count]; UserError, which begins with `source`, for another number of labels or something else."""
    if labels.shape not in ((count,), (count, 1)) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{source} is {labels.dtype} {list(labels.shape)}; expected one integer label for each of {count} images"
        )
    return labels.reshape(count).astype(np.int64)


def read_header(stream: IO[bytes]) -> Header:
    """Reads an .npy header and leaves the stream where its numbers begin. ValueError for something else."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy version {version} is not of plain numbers")
    shape, fortran_order, dtype = readers[version](stream)
    if not all(type(length) is int and length >= 0 for length in shape) or math.prod(shape) >= _MAX_ELEMENTS:
        raise ValueError(f"an impossible shape, {str(shape)[:60]}")
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
