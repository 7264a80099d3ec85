"""Ways down an objective beside steps of one length: with momentum, and with noise.

All of them count the gradient with its length, and add noise that depends on the image's number alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refine.synthesis.config import Ball
from refine.synthesis.loop import gradient_of
from refine.synthesis.task import Work
from robust_models.attacks import Iterate, cross_entropy
from robust_models.runtime.seeds import STEP, generator
from robust_models.threat import NORMS


@dataclass(frozen=True)
class NoisyMomentum:
    """v <- momentum * v - step_size / 2 * gradient; x <- x + v + noise * N(0, 1), kept in the ball and in [0,1].

    With momentum and hardly any noise the descent of Mirza et al. 2024, arXiv:2407.06315. Without momentum Langevin
    dynamics, whose images are distributed as exp(-objective / T) where steps are small, T = noise^2 / step_size
    (Welling & Teh 2011). Called like loop.points with the work of which it is the `sampler`.
    """

    momentum: float
    noise: float  # standard deviation of every step's, pixels in [0,1]
    seed: int
    rows: tuple[int, ...]  # the number of each image, which with the seed decides its noise

    def __call__(self, model: nn.Module, work: Work, ball: Ball) -> Iterator[Iterate]:
        """The points of the way, ball.steps + 1 of them."""
        norm, gradient = NORMS[ball.norm], gradient_of(work.objective)
        center = work.start if work.center is None else work.center
        draws = [generator("cpu", self.seed, STEP, row) for row in self.rows]
        x, v = work.start, torch.zeros_like(work.start)
        for _ in range(ball.steps):
            slope, values = gradient(model, x, work.y, cross_entropy)
            yield Iterate(x, values)
            v = self.momentum * v - ball.step_size / 2 * slope
            moved = x + v + self.noise * _standard_normal(draws, x)
            x = (center + norm.project(moved - center, ball.eps)).clamp(0, 1)
        yield Iterate(x, None)


def _standard_normal(draws: list[torch.Generator], like: Tensor) -> Tensor:
    """N(0, 1) of the shape of like [N,3,H,W], by a generator on the CPU for each image."""
    return torch.stack([torch.randn(like.shape[1:], generator=draw) for draw in draws]).to(like)
