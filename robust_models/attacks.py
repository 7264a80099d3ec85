"""Projected gradient descent: the single loop that training, refinement and evaluation share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.errors import UserError
from robust_models.threat import NORMS, per_sample

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_sum(logits: Tensor, y: Tensor) -> Tensor:
    """Summed, not averaged: each sample's gradient is then its own, whatever the batch size."""
    return F.cross_entropy(logits, y, reduction="sum")


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with parameters that collect no gradient; modes and flags are put back as found."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@dataclass(frozen=True)
class PGD:
    """x_adv = attack(model, x, y): `steps` steepest steps of length step_size, each projected on the eps-ball around x.

    x [N,C,H,W] in [0,1], y [N] int64. Untargeted (away from y) or targeted (towards y). With restarts, each sample
    keeps its worst run. `box="every_step"` clips to [0,1] inside the loop, as the robustness library does;
    `box="last"` clips the result only, as BIGRoC's Algorithm 1 does. Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float
    step_size: float
    steps: int
    norm: str = "l2"
    targeted: bool = False
    random_start: bool = False
    restarts: int = 1
    box: str = "every_step"
    loss: Loss = cross_entropy_sum

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"norm: {self.norm!r} is none of {', '.join(NORMS)}")
        for name, value, least in (("eps", self.eps, 0), ("steps", self.steps, 0), ("restarts", self.restarts, 1)):
            if not value >= least:
                raise UserError(f"{name}: {value} is less than {least}")
        if self.box not in ("every_step", "last"):
            raise UserError(f"box: {self.box!r} is neither 'every_step' nor 'last'")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x_adv [N,C,H,W]. The first run begins at `start` where one is given; the generator draws the other starts."""
        if not x.is_floating_point() or x.ndim != 4:
            raise UserError(f"x: {x.dtype} {list(x.shape)}; expected float [N,C,H,W] in [0,1] (robust_models.to_float)")
        x = x.detach()
        with frozen_eval(model):
            x_adv = self._run(model, x, y, self._start(x, generator) if start is None else start)
            if self.restarts == 1:
                return x_adv
            worst = _failure(model, x_adv, y, self.targeted)
            for _ in range(self.restarts - 1):
                x_new = self._run(model, x, y, self._start(x, generator))
                failure = _failure(model, x_new, y, self.targeted)
                x_adv = torch.where(per_sample(failure > worst, x), x_new, x_adv)
                worst = torch.maximum(failure, worst)
        return x_adv

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.random_start:
            return x
        return (x + NORMS[self.norm].random(x, self.eps, generator)).clamp(0, 1)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        ball = NORMS[self.norm]
        direction = -self.step_size if self.targeted else self.step_size
        x_adv = start.detach()
        for _ in range(self.steps):
            gradient = input_gradient(model, x_adv, y, self.loss)
            x_adv = x + ball.project(x_adv + direction * ball.steepest(gradient) - x, self.eps)
            if self.box == "every_step":
                x_adv = x_adv.clamp(0, 1)
        return x_adv.clamp(0, 1)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy_sum) -> Tensor:
    """Gradient of the loss at x, [N,C,H,W]; parameters collect nothing."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(model(x), y), x)
    return gradient


@torch.no_grad()
def _failure(model: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """How well the attack did on each sample, [N]: the margin by which the prediction is wrong (or on target)."""
    margin = target_margin(model(x), y)
    return margin if targeted else -margin


def target_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of y less the largest other logit, [N]; positive where the prediction is y."""
    is_y = F.one_hot(y, logits.shape[1]).bool()
    return logits[is_y] - logits.masked_fill(is_y, -torch.inf).amax(dim=1)
