"""The whole uint8 set on the device: a batch is an index."""

import torch
from torch import Tensor

from robust_models.datasets import Dataset
from robust_models.errors import UserError
from robust_models.runtime.seeds import ORDER, generator


class ResidentLoader:
    """batch(step) -> x_u8 [B,3,H,W], y [B] on the device; each epoch in a fresh order, its partial batch left out."""

    def __init__(self, data: Dataset, *, batch_size: int, seed: int, device: torch.device) -> None:
        if batch_size > len(data):
            raise UserError(f"batch_size: {batch_size} is more than the {len(data)} training images of {data.source}")
        self.x_u8 = data.x_u8.to(device)
        self.y = data.y.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = len(data) // batch_size
        self._epoch = -1
        self._order = torch.empty(0)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # Drawn on the CPU so that every device sees the same order.
            order = torch.randperm(len(self.y), generator=generator("cpu", self.seed, ORDER, epoch))
            self._epoch, self._order = epoch, order.to(self.y.device)
        index = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.x_u8[index], self.y[index]
