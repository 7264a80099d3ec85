"""The real images of a training: batch k is the same whenever it is asked for, but for its random flips."""

import torch
from torch import Tensor

from benchmarks.generators.model import SIZE, Batch
from robust_models.datasets import Dataset, load_dataset
from robust_models.errors import UserError
from robust_models.images import to_float
from robust_models.runtime.seeds import ORDER, generator


class Batches:
    """batches(k): real images x [N,3,32,32] in [-1,1] and classes y [N]; every epoch is in an order of its own.

    Images at the end of an epoch that fill no batch are left out. UserError where there are too few, or of other sizes.
    """

    def __init__(self, source: str, batch_size: int, seed: int, device: torch.device, *, flip: bool) -> None:
        self.data: Dataset = load_dataset(source, "train")
        if self.data.image_size != SIZE:
            raise UserError(f"data: {source} has images of {self.data.image_size} pixels; these networks make {SIZE}")
        self.per_epoch = len(self.data) // batch_size
        if self.per_epoch == 0:
            raise UserError(f"batch_size: {batch_size}, but {source} has {len(self.data)} images; give a smaller one")
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.x_u8, self.y = self.data.x_u8.to(device), self.data.y.to(device)
        self._order = -1, torch.empty(0)

    def __call__(self, k: int) -> Batch:
        epoch, place = divmod(k, self.per_epoch)
        index = self._of_epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        x = 2 * to_float(self.x_u8[index]) - 1
        if self.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
        return x, self.y[index]

    def _of_epoch(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            order = torch.randperm(len(self.data), generator=generator("cpu", self.seed, ORDER, epoch))
            self._order = epoch, order.to(self.y.device)
        return self._order[1]
