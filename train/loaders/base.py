"""What every loader does: the same images in the same order for the same seed, wherever they come from."""

import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robust_models.datasets import AnyDataset, Dataset, LazyDataset
from robust_models.errors import UserError
from robust_models.images.image_set import OnError
from robust_models.runtime.seeds import ORDER, generator

_READ_AT_ONCE = 1024  # images
Batch = tuple[Tensor, Tensor]  # x_u8 [B,3,S,S], y int64 [B]
LoaderName = Literal["resident", "stream", "ffcv"]


@dataclass(frozen=True)
class Order:
    """Which images make the batch of a step: each epoch in a fresh order, its partial batch left out.

    Of `world` processes each takes its part of every batch; together they see what one process would.
    """

    count: int
    batch_size: int  # of all processes together
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the set."""
        return self.count // self.batch_size

    def epoch(self, epoch: int) -> Tensor:
        """int64 [steps_per_epoch, batch_size / world], numbers of images, on the CPU so that every device sees them."""
        order = torch.randperm(self.count, generator=generator("cpu", self.seed, ORDER, epoch))
        return order[: self.steps_per_epoch * self.batch_size].view(self.steps_per_epoch, self.world, -1)[:, self.rank]


@dataclass(frozen=True)
class LoaderSettings:
    """What batches are made of and where they go; the same for every kind of loader."""

    batch_size: int  # of all `world` processes together; each gets batch_size / world images of a step
    seed: int
    device: torch.device
    workers: int | None = None  # processes (stream) or threads (ffcv); None: one per usable core
    random_crop: bool = False  # stream, ffcv: random boxes of the images, each epoch others
    on_error: OnError = "fail"  # stream, resident: "skip" takes the next image for one that cannot be read
    rank: int = 0
    world: int = 1


class Loader(ABC):
    """Batches on the device, a function of (seed, step) alone: a run that resumes at a step sees what it would have."""

    def __init__(self, data: AnyDataset, settings: LoaderSettings) -> None:
        """UserError where the batch size does not fit the data or the processes."""
        count, batch_size, world = len(data), settings.batch_size, settings.world
        if batch_size > count:
            raise UserError(f"batch_size: {batch_size} is more than the {count} training images of {data.source}")
        if batch_size % world:
            raise UserError(
                f"batch_size: {batch_size} cannot be shared by {world} processes; give a multiple of {world}"
            )
        self.settings, self.device = settings, settings.device
        self.order = Order(count, batch_size, settings.seed, settings.rank, world)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._stream: Iterator[Batch] = iter(())
        self._next = -1

    @abstractmethod
    def batches(self, step: int) -> Iterator[Batch]:
        """The batches of this step and of all after it, without end."""

    def batch(self, step: int) -> Batch:
        """The batch of any step; steps in turn are read ahead."""
        if step != self._next:
            self.close()
            self._stream = self.batches(step)
        batch = next(self._stream)
        self._next = step + 1
        return batch

    def close(self) -> None:
        """Ends what reads ahead."""
        self._stream = iter(())
        self._next = -1


class ResidentLoader(Loader):
    """The whole uint8 set on the device: a batch is an index; nothing is read, decoded or copied between steps."""

    def __init__(self, data: AnyDataset, settings: LoaderSettings) -> None:
        super().__init__(data, settings)
        held = in_memory(data, settings.on_error)
        self.x_u8, self.y = held.x_u8.to(self.device), held.y.to(self.device)

    def batches(self, step: int) -> Iterator[Batch]:
        """See Loader: an index into the set that lies on the device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            for index in self.order.epoch(epoch).to(self.device)[position:]:
                yield self.x_u8[index], self.y[index]
            epoch, position = epoch + 1, 0


class MixedLoader(Loader):
    """Real images and a generator's, each from its own loader, together in every batch (Gowal et al. 2021,
    arXiv:2110.09468).

    An epoch has as many steps as the real images alone would fill with batches of this size. The two kinds lie evenly
    among each other, so that processes together see the batch that one would.
    """

    def __init__(self, real: Loader, made: Loader) -> None:
        self.parts = real, made
        sizes = [part.order.batch_size for part in self.parts]
        self.settings, self.device = replace(real.settings, batch_size=sum(sizes)), real.device
        self.steps_per_epoch = max(1, real.order.count // sum(sizes))
        steps = torch.arange(sum(sizes) // real.order.world + 1) * sizes[1] // sum(sizes)
        self._place = steps.diff().argsort(stable=True).argsort().to(self.device)  # in the batch -> among real, made
        self._stream, self._next = iter(()), -1

    def batches(self, step: int) -> Iterator[Batch]:
        """See Loader."""
        for parts in zip(*(part.batches(step) for part in self.parts), strict=True):
            x_u8, y = (torch.cat(column) for column in zip(*parts, strict=True))
            yield x_u8[self._place], y[self._place]


def in_memory(data: AnyDataset, on_error: OnError) -> Dataset:
    """All images, decoded; with on_error="skip" the next readable image stands in for one that cannot be read."""
    if isinstance(data, Dataset) or on_error == "fail":
        return data.in_memory()
    reader, everything = Reader(data, on_error), torch.arange(len(data))
    x_u8, y = (torch.cat(parts) for parts in zip(*map(reader.read, everything.split(_READ_AT_ONCE)), strict=True))
    return Dataset(x_u8, y, data.class_names, data.source)


class Reader:
    """Images by number. on_error="skip": the next readable image, label and all, stands in for an unreadable one."""

    def __init__(self, data: AnyDataset, on_error: OnError) -> None:
        self.data, self.on_error, self.y = data, on_error, data.y
        self._named: set[int] = set()

    def read(self, indices: Tensor, random_crop: tuple[int, int] | None = None) -> Batch:
        """x_u8 [n,3,S,S], y [n]. random_crop: (seed, epoch), see LazyDataset.read; for lazy sets only."""
        try:
            return self._pixels(indices, random_crop), self.y[indices]
        except UserError:
            if self.on_error == "fail":
                raise
        parts = [self._next_readable(int(index), random_crop) for index in indices]
        x_u8, y = (torch.cat(column) for column in zip(*parts, strict=True))
        return x_u8, y

    def _next_readable(self, first: int, random_crop: tuple[int, int] | None) -> Batch:
        for number in range(first, first + len(self.data)):
            index = torch.tensor([number % len(self.data)])
            try:
                return self._pixels(index, random_crop), self.y[index]
            except UserError as error:
                if number not in self._named:
                    print(f"skipped: {error}; the next image takes its place", file=sys.stderr)
                self._named.add(number)
        raise UserError(f"{self.data.source}: none of the {len(self.data)} images can be read")

    def _pixels(self, indices: Tensor, random_crop: tuple[int, int] | None) -> Tensor:
        if random_crop is not None and isinstance(self.data, LazyDataset):
            return self.data.read(indices, random_crop=random_crop)
        return self.data.read(indices)


@contextmanager
def dead_workers_reported() -> Iterator[None]:
    """UserError where a worker process of torch's DataLoader was killed, which torch reports anywhere in the block."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise the same again when others end
        raise UserError(
            f"data.loader: {str(error).splitlines()[0].strip().rstrip('.')}, from outside or for want of memory; the "
            "last saved state is kept: run the same command again, perhaps with fewer --data.workers"
        ) from error


def usable_cores() -> int:
    """Cores that this process may use, which a container or taskset makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int | None) -> int:
    """That many; None is one per usable core. UserError for more than there are."""
    cores = usable_cores()
    if workers is not None and workers > cores:
        raise UserError(
            f"data.workers: {workers} is more than the {cores} cores that this process may use; give {cores}"
        )
    return cores if workers is None else workers
