"""Batches that worker processes read and decode ahead of the training: for any set, at the pace of its files."""

import itertools
import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robust_models.datasets import AnyDataset, LazyDataset
from train.loaders.base import Batch, Loader, Order, pick_workers

_AHEAD = 4  # batches per worker


class StreamLoader(Loader):
    """workers: processes, None for one per core, 0 for none. random_crop: see LazyDataset.read, for lazy sets only."""

    def __init__(
        self,
        data: AnyDataset,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        workers: int | None = None,
        random_crop: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(
            len(data), data.source, batch_size=batch_size, seed=seed, device=device, rank=rank, world=world
        )
        self.workers = pick_workers(workers)
        self.steps = _Steps(data, self.order, random_crop)

    def batches(self, step: int) -> Iterator[Batch]:
        loader = DataLoader(
            self.steps,
            batch_size=None,
            sampler=itertools.count(step),
            num_workers=self.workers,
            prefetch_factor=_AHEAD if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_outlive_sigterm,
        )
        for x_u8, y in loader:
            yield x_u8.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def _outlive_sigterm(_: int) -> None:
    """A scheduler signals the whole process group: the run saves its state first, and then ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Steps(TorchDataset[Batch]):
    """step -> its batch; each worker keeps the order of the epoch it is in."""

    def __init__(self, data: AnyDataset, order: Order, random_crop: bool) -> None:
        self.data, self.order, self.random_crop = data, order, random_crop
        self.y = data.y
        self._epoch, self._indices = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.order.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._indices = epoch, self.order.epoch(epoch)
        indices = self._indices[position]
        if self.random_crop and isinstance(self.data, LazyDataset):
            return self.data.read(indices, random_crop=(self.order.seed, epoch)), self.y[indices]
        return self.data.read(indices), self.y[indices]
