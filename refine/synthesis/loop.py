"""The loop of every task: the foundation's PGD, on an objective of the task's own; and objectives that tasks share."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from refine.network import Network
from refine.synthesis.config import Ball
from refine.synthesis.task import Objective, Work
from robust_models.attacks import PGD, Gradient, Iterate, Loss, cross_entropy, frozen_eval
from robust_models.images import to_u8


def synthesize(model: nn.Module, work: Work, ball: Ball) -> Tensor:
    """Images [N,3,H,W] in [0,1] that lower work.objective, by ball.steps steps from work.start.

    Each stays in the ball around its centre and in [0,1]. The model's mode and flags are put back as found.
    """
    x = work.start
    with frozen_eval(model):
        for x in iterates(model, work, ball):  # noqa: B007  (only the last one is wanted)
            pass
    return x


def iterates(model: nn.Module, work: Work, ball: Ball) -> Iterator[Tensor]:
    """The images after 0, 1, ... ball.steps steps. The model is the caller's to freeze (frozen_eval)."""
    return (iterate.x_adv for iterate in points(model, work, ball))


def points(model: nn.Module, work: Work, ball: Ball) -> Iterator[Iterate]:
    """The iterates, each with its objective [N] (None after the last step, which needs none)."""
    if work.sampler is not None:
        return work.sampler(model, work, ball)
    attack = PGD(
        ball.eps, ball.step_size, ball.steps, norm=ball.norm, targeted=True, gradient=gradient_of(work.objective)
    )
    center = work.start if work.center is None else work.center
    return attack.iterates(model, center, work.y, work.start)


def gradient_of(objective: Objective) -> Gradient:
    """The objective as PGD's gradient, which then takes the place of its loss on logits."""

    def gradient(model: nn.Module, x: Tensor, y: Tensor, _: Loss) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            values = objective(model, x, y)
            (found,) = torch.autograd.grad(values.sum(), x)
        return found, values.detach()

    return gradient


def stored(x: Tensor, work: Work) -> Tensor:
    """The loop's result as it is written, uint8 [N,3,H,W]; what work.keep_outside excludes is the original's."""
    x_u8 = to_u8(x)
    if work.keep_outside is None or work.original_u8 is None:
        return x_u8
    return torch.where(work.keep_outside.bool(), x_u8, work.original_u8)


def work_towards_class(config: Any, network: Network, x: Tensor, mask: Tensor | None, y: Tensor) -> Work:
    """The work of a task that moves images x towards classes y and asks for nothing else."""
    return Work(network.here(x), network.here(y), towards_class)


def lowering(loss: Loss) -> Objective:
    """The loss (logits, y) -> [N] of a classifier as a task's objective."""
    return lambda model, x, y: loss(model(x), y)


def towards_class(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy to the target class, [N]."""
    return cross_entropy(model(x), y)


def faithful_outside(objective: Objective, x0: Tensor, mask: Tensor, weight: float) -> Objective:
    """objective + weight * MSE outside the mask; mask [N,1,H,W] is 1 where x may change.

    The mean of ((x0 - x) (1 - mask))^2 is over all numbers of the image, those inside the mask among them
    (arXiv:1906.09453, inpainting).
    """

    def both(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        change = ((x0 - x) * (1 - mask)).square().flatten(1).mean(dim=1)
        return objective(model, x, y) + weight * change

    return both
