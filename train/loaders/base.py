"""What every loader does: the same images in the same order for the same seed, wherever they come from."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.runtime.seeds import ORDER, generator

Batch = tuple[Tensor, Tensor]  # x_u8 [B,3,S,S], y int64 [B]


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
        return self.count // self.batch_size

    def epoch(self, epoch: int) -> Tensor:
        """int64 [steps_per_epoch, batch_size / world], numbers of images, on the CPU so that every device sees them."""
        order = torch.randperm(self.count, generator=generator("cpu", self.seed, ORDER, epoch))
        return order[: self.steps_per_epoch * self.batch_size].view(self.steps_per_epoch, self.world, -1)[:, self.rank]


class Loader(ABC):
    """Batches on the device, a function of (seed, step) alone: a run that resumes at a step sees what it would have.

    batch_size is that of all `world` processes together; each gets batch_size / world images of a step.
    """

    def __init__(
        self,
        count: int,
        source: str,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size > count:
            raise UserError(f"batch_size: {batch_size} is more than the {count} training images of {source}")
        if batch_size % world:
            raise UserError(
                f"batch_size: {batch_size} cannot be shared by {world} processes; give a multiple of {world}"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.order = Order(count, batch_size, seed, rank, world)
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
