"""PGD whose random start belongs to the image, not to its place in a batch."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust_models import NORMS, PGD, UserError
from robust_models.attacks import frozen_eval
from robust_models.runtime.seeds import EVALUATION, generator
from robust_models.threat import NormName


@dataclass(frozen=True)
class SeededPGD:
    """x_adv = attempt(model, x, y, index): one PGD run (attack.restarts is 1, untargeted); index [n] int64 says
    which images of the set x are.

    The start of image i is a function of (seed, restart, i) alone, drawn on the CPU: batch size, device and which other
    images are still in the race do not change it.

    early_stop  an image leaves the run at the first point that is misclassified, found with the gradient at no cost:
                never weaker than the last point, which may have wandered back, and several times faster.
    """

    attack: PGD
    seed: int = 0
    restart: int = 0
    early_stop: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        attack, start = self.attack, x
        if attack.random_start:
            start = random_start(x, index, norm=attack.norm, eps=attack.eps, seed=self.seed, restart=self.restart)
        if self.early_stop:
            with frozen_eval(model):
                x_adv = first_misclassified(attack, model, x, y, start)
        else:
            x_adv = attack(model, x, y, start=start)
        _check_finite(x_adv, index)
        return x_adv


def _check_finite(x_adv: Tensor, index: Tensor) -> None:
    """UserError where a step left NaN: such an image lies in no ball, and would count as robust."""
    bad = index[(~x_adv.flatten(1).isfinite().all(dim=1)).cpu()].tolist()
    if bad:
        raise UserError(
            f"model: the input gradient of image {bad[0]} is not finite ({len(bad)} such in the batch), so PGD cannot "
            "attack it; a square root or logarithm at 0 in the network is the usual reason"
        )


def first_misclassified(attack: PGD, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """The first point of each image's run that model gets wrong, else the last one; x, y, start as for the attack.

    The model is the caller's to freeze. Memory and points are those of attack.iterates with box="every_step".
    """
    logits: list[Tensor] = []

    def noted_loss(seen: Tensor, labels: Tensor) -> Tensor:
        logits.append(seen.detach())
        return attack.loss(seen, labels)

    one_step = replace(attack, steps=1, box="every_step", loss=noted_loss)
    x_adv, alive = start.clone(), torch.arange(len(x), device=x.device)
    for _ in range(attack.steps):
        if not len(alive):
            break
        _, point = one_step.iterates(model, x[alive], y[alive], x_adv[alive])
        right = logits.pop().argmax(1) == y[alive]
        alive = alive[right]
        x_adv[alive] = point.x_adv[right]
    return x_adv


def random_start(x: Tensor, index: Tensor, *, norm: NormName, eps: float, seed: int, restart: int) -> Tensor:
    """x [n,C,H,W] plus a uniform draw from the eps-ball for each image, inside [0,1]."""
    blank = torch.zeros(1, *x.shape[1:])
    draws = [
        NORMS[norm].random(blank, eps, generator("cpu", seed, EVALUATION, (restart << 32) + i)) for i in index.tolist()
    ]
    return (x + torch.cat(draws).to(x)).clamp(0, 1)
