"""Labelled images: all of them in memory, or read as they are asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robust_models.datasets.crops import centre_crop, random_boxes, resized
from robust_models.datasets.stores import Store
from robust_models.errors import UserError
from robust_models.images.image_set import in_fair_order

_READ_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class Dataset:
    """x_u8 uint8 [N,3,H,W], y int64 [N], and the name of each class."""

    x_u8: Tensor
    y: Tensor
    class_names: tuple[str, ...]
    source: str
    total: int | None = None  # of these the first ones are here; None: all are

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, part: slice) -> "Dataset":
        return replace(self, x_u8=self.x_u8[part], y=self.y[part])

    @property
    def image_size(self) -> int:
        return self.x_u8.shape[-1]

    def read(self, indices: Tensor) -> Tensor:
        """Those images, uint8 [n,3,S,S]."""
        return self.x_u8[indices]

    def shuffled(self, order: Tensor) -> "Dataset":
        return replace(self, x_u8=self.x_u8[order], y=self.y[order])

    def in_memory(self) -> "Dataset":
        return self


@dataclass(frozen=True)
class LazyDataset:
    """Images of a store, of any sizes there and of one size here; only labels and places are in memory.

    index int64 [N] says which images of the store these are, in which order. resize_to (pixels, at least image_size) is
    the shorter side from whose centre an image is cut.
    """

    store: Store
    index: np.ndarray
    image_size: int
    resize_to: int
    class_names: tuple[str, ...]
    source: str
    total: int | None = None  # of these the first ones are here; None: all are

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> "LazyDataset":
        return replace(self, index=self.index[part])

    @property
    def y(self) -> Tensor:
        return torch.from_numpy(self.store.labels[self.index])

    def read(self, indices: Tensor, *, random_crop: tuple[int, int] | None = None) -> Tensor:
        """Those images, uint8 [n,3,S,S]: cut from the centre, or with random_crop=(seed, epoch) at random boxes.

        The box of an image is a function of seed, epoch and its number in the store.
        """
        numbers = self.index[indices.numpy()]
        if len(numbers) == 0:
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        images = self.store.read(numbers)
        if random_crop is None:
            cut = [centre_crop(image, self.image_size, self.resize_to) for image in images]
        else:
            sizes = np.array([image.shape[:2] for image in images], np.int64)
            boxes = random_boxes(sizes, *random_crop, numbers)
            cut = [resized(image, box, self.image_size) for image, box in zip(images, boxes.tolist(), strict=True)]
        return torch.from_numpy(np.stack(cut).transpose(0, 3, 1, 2).copy())

    def shuffled(self, order: Tensor) -> "LazyDataset":
        return replace(self, index=self.index[order.numpy()])

    def in_memory(self) -> Dataset:
        """All of it, decoded. UserError where the machine's memory is too small for it."""
        needed, there = len(self) * 3 * self.image_size**2, _memory_bytes()
        if needed > there:
            raise UserError(
                f"{self.source}: {len(self):,} images of {self.image_size} px are {needed / 2**30:.0f} GiB in memory, "
                f"this machine has {there / 2**30:.0f}; read them as they are needed: --data.loader stream or ffcv"
            )
        x_u8 = torch.empty(len(self), 3, self.image_size, self.image_size, dtype=torch.uint8)
        # In the order of the store, whose neighbours are cheap to read together.
        for places in torch.from_numpy(np.argsort(self.index, kind="stable")).split(_READ_AT_ONCE):
            x_u8[places] = self.read(places)
        return Dataset(x_u8, self.y, self.class_names, self.source, self.total)


AnyDataset = Dataset | LazyDataset


def named(data: AnyDataset, class_names: Sequence[str]) -> AnyDataset:
    """The same images, their classes called class_names; UserError where these are too few."""
    if len(class_names) < len(data.class_names):
        raise UserError(
            f"data.class_names: {len(class_names)} names for the {len(data.class_names)} classes of {data.source}"
        )
    return replace(data, class_names=tuple(class_names))


def mixed(data: AnyDataset) -> AnyDataset:
    """A set that lies in the order of its classes, as folders do, is shuffled, always alike.

    Its first images (--limit) and its last ones (held out in training) are then a fair sample; any other order stays.
    """
    order = in_fair_order(data.y.numpy())
    return data if order is None else data.shuffled(torch.from_numpy(order))


def first(data: AnyDataset, limit: int | None) -> AnyDataset:
    """The first so many images (None: all), which know how many there are."""
    return replace(data[:limit], total=data.total or len(data))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
