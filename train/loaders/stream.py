"""Batches that worker processes read and decode ahead of the training: for any set, at the pace of its files."""

import itertools
import os
import signal
from collections.abc import Iterator
from functools import partial
from multiprocessing.synchronize import Event

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robust_models.datasets import AnyDataset
from robust_models.errors import UserError
from train.loaders.base import Batch, Loader, LoaderSettings, Order, Reader, pick_workers

_AHEAD = 4  # batches per worker


class StreamLoader(Loader):
    """settings.workers: processes; 0 reads in this one."""

    def __init__(self, data: AnyDataset, settings: LoaderSettings) -> None:
        super().__init__(data, settings)
        self.workers = pick_workers(settings.workers)
        self.steps = _Steps(Reader(data, settings.on_error), self.order, settings.random_crop)

    def batches(self, step: int) -> Iterator[Batch]:
        """The batches from this step on. UserError for an image that cannot be read."""
        ending = torch.multiprocessing.get_context().Event()
        loader = DataLoader(
            self.steps,
            batch_size=None,
            sampler=itertools.count(step),
            num_workers=self.workers,
            prefetch_factor=_AHEAD if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(_outlive_signals, ending),
        )
        try:
            for batch in loader:
                if isinstance(batch, UserError):
                    raise batch
                x_u8, y = batch
                yield x_u8.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # of a batch in the memory of a dead worker
            raise RuntimeError("DataLoader worker was killed") from error
        finally:
            ending.set()


def _outlive_signals(ending: Event, _: int) -> None:
    """A scheduler and Ctrl-C signal the whole process group: the run saves its state first, and then ends its workers.

    Once it is `ending`, SIGTERM ends a worker as usual; a run that ignored it would wait for its workers for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)


class _Steps(TorchDataset[Batch | UserError]):
    """step -> its batch, or what is wrong with it; each worker keeps the order of the epoch it is in."""

    def __init__(self, reader: Reader, order: Order, random_crop: bool) -> None:
        self.reader, self.order, self.random_crop = reader, order, random_crop
        self._epoch, self._indices = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Batch | UserError:
        epoch, position = divmod(step, self.order.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._indices = epoch, self.order.epoch(epoch)
        try:
            return self.reader.read(self._indices[position], (self.order.seed, epoch) if self.random_crop else None)
        except UserError as error:  # as a value: raised here it would travel with the worker's traceback in its text
            return error
