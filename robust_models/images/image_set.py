"""What an image set is, whatever holds it."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.pixels import Depth

OnError = Literal["fail", "skip"]  # what an undecodable image does: end the run, or be left out and listed
Split = Literal["train", "test"]
SaveAs = Literal["source", "png"]  # the files of a refined folder: each in its source's format, or without loss
Add = Callable[[Tensor], None]  # takes the next images [n,3,H,W] of a set that is being written
_FILE_SUFFIXES = IMAGE_SUFFIXES | {".npz", ".npy", ".pt", ".pth", ".tar", ".parquet"}  # none is the name of a folder


@dataclass(frozen=True)
class Sample:
    """Which images of a set are opened: all, or the first `limit` that are readable; others are not decoded.

    fair: a set that lies in the order of its classes, as folders do, counts as shuffled, always alike: its first images
    are then of all classes.
    """

    limit: int | None = None
    fair: bool = False

    def size(self, count: int) -> int:
        """How many of `count` images that is."""
        return count if self.limit is None else min(self.limit, count)

    def order(self, labels: np.ndarray | None) -> np.ndarray | None:
        """The numbers of all images in the order in which they count, int64; None where that is their own."""
        return in_fair_order(labels) if self.fair and labels is not None else None


ALL = Sample()


def in_fair_order(labels: np.ndarray) -> np.ndarray | None:
    """A shuffle, always the same, of labels [N] that lie in the order of their classes; None where they do not."""
    if labels[0] == labels[-1] or (np.diff(labels) < 0).any():
        return None
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()


def ranks(numbers: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """The place of each of these images, whose numbers ascend, among them as `order` counts them, int64."""
    if order is None:
        return np.arange(len(numbers))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place[numbers].argsort().argsort()


class Opened(NamedTuple):
    """A set as it was opened, and how it lies among what is there."""

    images: "ImageSet"
    places: np.ndarray  # int64 [n]: each image's place in the order of the sample
    total: int  # how many images there are
    labels: np.ndarray | None  # int64 [total], of all of them


class HasSize(Protocol):
    """A set, or what decoding one image showed."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def depth(self) -> Depth: ...


@dataclass(frozen=True)
class ImageSet(ABC):
    """N images of one size, read on demand; labels are indices into class_names where those are known.

    Nothing here grows with the pixels: what is kept per image is a label, a name and a place in a file.
    """

    path: Path
    names: Sequence[str]  # one relative file name (without suffix) per image
    size: tuple[int, int]  # height, width in pixels
    labels: np.ndarray | None  # int64 [N]
    class_names: tuple[str, ...] | None
    skipped: tuple[str, ...] = ()  # what could not be read, with on_error="skip"
    depth: Depth = "uint8"  # the type that `read` gives
    about: str = ""  # what was found, in words: "npy, uint16 [N,3,H,W]"
    notes: tuple[str, ...] = ()  # a line each on what was passed over or how the file was understood

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]  # of a file of this kind; () for kinds that are folders only

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1 as [n,3,H,W] of type `depth`: uint8, uint16, or float32 in [0,1]."""

    @abstractmethod
    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        """Writes a set of the same kind, names and layout to `out`; see `write_images`, which calls it."""

    def holds(self, suffix: str) -> bool:
        """Whether a file ending in `suffix` (in small letters) can hold the refined copy of this set."""
        return self.in_one_file and suffix in self.suffixes

    def is_lossy(self, out: Path, i: int) -> bool:
        """Whether image i of the refined copy at `out` was written with loss."""
        return False

    def file_name(self, i: int) -> str:
        """What messages call image i."""
        return self.names[i]

    @property
    def in_one_file(self) -> bool:
        """Whether this set, and so its refined copy, is a single file."""
        return bool(self.suffixes)

    def batches(self, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
        """(slice into the set, images [n,3,H,W] as `read` gives them) over the whole set, in order."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield slice(start, stop), self.read(start, stop)


@dataclass(frozen=True)
class ImageGroups:
    """All images of a path, as sets whose images have one size and depth; only a folder of files has several.

    The sets are in the order of their first images. Labels and class names are those of the whole: equal class names
    in every set. len() is the number of images.
    """

    path: Path
    sets: tuple[ImageSet, ...]
    places: tuple[np.ndarray, ...]  # int64 [n] each: places[g][i] is the number of image i of sets[g] among all images
    total: int  # how many lie there: more than these where a limit or on_error="skip" has left some out
    num_classes: int  # that the labels of all that lie there index, by the highest; 0 where there are none

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def skipped(self) -> tuple[str, ...]:
        """What could not be read, with on_error="skip"."""
        return self.sets[0].skipped

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the labels, where those have names."""
        return self.sets[0].class_names

    @property
    def counts(self) -> list[int]:
        """How many images each set has."""
        return [len(images) for images in self.sets]

    @cached_property
    def order(self) -> Tensor:
        """The place among all images of each row, int64 [N]; the rows are the sets' images, one set after another."""
        return torch.from_numpy(np.concatenate(self.places))

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N] in the order of the whole; None where there are none."""
        known = [images.labels for images in self.sets if images.labels is not None]
        if len(known) < len(self.sets):
            return None
        labels = np.empty(len(self), np.int64)
        labels[self.order.numpy()] = np.concatenate(known)
        return labels

    @property
    def names(self) -> Sequence[str]:
        """The name of every image, in the order of the whole."""
        if len(self.sets) == 1:
            return self.sets[0].names
        names = [""] * len(self)
        for images, places in zip(self.sets, self.places, strict=True):
            for place, name in zip(places.tolist(), images.names, strict=True):
                names[place] = name
        return names

    def at(self, row: int) -> tuple[ImageSet, int]:
        """The set of this row, and its number in it."""
        g = self.set_of(row)
        return self.sets[g], row - self._ends[g] + len(self.sets[g])

    def set_of(self, row: int) -> int:
        """The number of the set that this row is of."""
        return bisect_right(self._ends, row)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop-1, which must be of one set, [n,3,H,W] in its depth."""
        images, first = self.at(start)
        return images.read(first, first + stop - start)

    def is_lossy(self, out: Path, place: int) -> bool:
        """Whether the image at this place of the refined copies at `out` was written with loss."""
        images, i = self.at(int(self._rows[place]))
        return images.is_lossy(out, i)

    @cached_property
    def _rows(self) -> Tensor:
        return self.order.argsort()

    @property
    def about(self) -> str:
        """What was found: "folder, uint8", or "folder, 3 sizes from 32x48 to 640x480"."""
        if len(self.sets) == 1:
            return self.sets[0].about
        sizes = sorted({images.size for images in self.sets}, key=lambda size: size[0] * size[1])
        (height, width), (last_height, last_width) = sizes[0], sizes[-1]
        return f"{self.sets[0].kind}, {len(sizes)} sizes from {width}x{height} to {last_width}x{last_height}"

    def one_set(self) -> ImageSet:
        """The set, for uses that need one size. UserError, one line, where there are several."""
        first, *others = self.sets
        if others:
            raise UserError(difference(self.path, first.file_name(0), first, others[0].file_name(0), others[0]))
        return first


class Names(Sequence[str]):
    """Names made when asked for."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = range(len(self))[index]
        return self._name(found) if isinstance(found, int) else [self._name(i) for i in found]

    def _name(self, i: int) -> str:
        raise NotImplementedError


class Numbered(Names):
    """ "000000", "000001", ..."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def _name(self, i: int) -> str:
        return f"{i:06d}"


def check_out(out: Path, like: ImageSet) -> None:
    """UserError where the name of `out` contradicts the kind of `like`; to be called before any work."""
    suffix = out.suffix.lower()
    if suffix != ".npz" and not like.holds(suffix) and (suffix in _FILE_SUFFIXES or like.kind == "image file"):
        raise UserError(f"out: {out} ends in {suffix or 'nothing'}, but {kind_of(like)} (or an .npz)")


def check_groups_out(out: Path, like: ImageGroups) -> None:
    """UserError where the name of `out` contradicts the kind of `like`; to be called before any work."""
    check_out(out, like.sets[0])
    if len(like.sets) > 1 and out.suffix.lower() == ".npz":
        raise UserError(f"out: {out} is one array, but the images have several sizes; name a folder")


def check_apart(out: Path, source: Path, *, shown: Path | None = None) -> None:
    """UserError where `out` is `source`, lies in it or contains it, links resolved.

    shown: what the message calls `out`, where that is a place derived from what the user named.
    """
    try:
        place, origin = out.resolve(), source.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a link to itself, a null byte
        raise UserError(f"out: {shown or out} or the input {source} is no usable path ({error})") from error
    if place == origin or origin in place.parents or place in origin.parents:
        raise UserError(f"out: {shown or out} overlaps the input {source}; choose a place outside it")


def kind_of(like: ImageSet) -> str:
    """A clause for messages: what `like` is, and what its refined copy is called."""
    suffix = next(filter(like.holds, like.suffixes), "")
    name = f"a file ending in {suffix}" if suffix else "a folder"
    return f"the images are {like.about or like.kind} and stay of that kind; name {name}"


def difference(path: Path, name: str, one: HasSize, other_name: str, other: HasSize) -> str:
    """The message about two images of one set that differ in size or depth."""
    if one.size != other.size:
        (height, width), (other_height, other_width) = one.size, other.size
        return (
            f"{path}: mixed sizes: {name} is {width}x{height}, {other_name} is {other_width}x{other_height}; "
            "resize them to one size first"
        )
    return f"{path}: mixed depths: {name} is {one.depth}, {other_name} is {other.depth}; convert them to one first"
