"""PGD whose random start belongs to the image, not to its place in a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_models import NORMS, PGD
from robust_models.runtime.seeds import EVALUATION, generator


@dataclass(frozen=True)
class SeededPGD:
    """x_adv = attempt(model, x, y, index): one PGD run (attack.restarts is 1); index [n] int64 says
    which images of the set x are.

    The start of image i is a function of (seed, restart, i) alone, drawn on the CPU: batch size, device and which other
    images are still in the race do not change it.
    """

    attack: PGD
    seed: int = 0
    restart: int = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        if not self.attack.random_start:
            return self.attack(model, x, y)
        start = random_start(x, index, norm=self.attack.norm, eps=self.attack.eps, seed=self.seed, restart=self.restart)
        return self.attack(model, x, y, start=start)


def random_start(x: Tensor, index: Tensor, *, norm: str, eps: float, seed: int, restart: int) -> Tensor:
    """x [n,C,H,W] plus a uniform draw from the eps-ball for each image, inside [0,1]."""
    blank = torch.zeros(1, *x.shape[1:])
    draws = [
        NORMS[norm].random(blank, eps, generator("cpu", seed, EVALUATION, (restart << 32) + i)) for i in index.tolist()
    ]
    return (x + torch.cat(draws).to(x)).clamp(0, 1)
