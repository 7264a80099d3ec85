"""The whole uint8 set on the device: a batch is an index."""

from collections.abc import Iterator

import torch

from robust_models.datasets import Dataset
from train.loaders.base import Batch, Loader


class ResidentLoader(Loader):
    """For sets that fit on the device: nothing is read, decoded or copied between steps."""

    def __init__(
        self, data: Dataset, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(
            len(data), data.source, batch_size=batch_size, seed=seed, device=device, rank=rank, world=world
        )
        self.x_u8 = data.x_u8.to(device)
        self.y = data.y.to(device)

    def batches(self, step: int) -> Iterator[Batch]:
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            for index in self.order.epoch(epoch).to(self.device)[position:]:
                yield self.x_u8[index], self.y[index]
            epoch, position = epoch + 1, 0
