"""One training step: augment, attack, descend. Nothing here waits for the device (objective energy does)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.attacks import PGD
from robust_models.errors import UserError
from robust_models.images import to_float
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.seeds import STEP, generator
from robust_models.threat import NORMS
from train.augment import augment, noise_for, under
from train.config import AttackConfig, TrainConfig, at
from train.mixing import mix
from train.objectives import CrossEntropy, Objective, Trades, adversarial_weights
from train.parallel import ALONE, average, part, whole

if TYPE_CHECKING:
    from train.energy import Energy


class Measured(NamedTuple):
    """0-d tensors still on the device, of the attacked batch of all ranks."""

    loss: Tensor
    accuracy: Tensor
    grad_norm: Tensor


def mean(measured: Sequence[Measured], last_step: int) -> dict[str, float]:
    """Means over the steps up to last_step, by name. UserError for the first step that was not finite."""
    values = torch.stack([torch.stack(tuple(one)) for one in measured]).double().cpu()
    for i, row in enumerate(values.tolist()):
        if not all(map(math.isfinite, row)):
            what, number = ("loss", row[0]) if not math.isfinite(row[0]) else ("gradient", row[2])
            raise UserError(
                f"step {last_step - len(values) + i + 1}: the {what} became {number}; the last good state is kept; "
                "lower --optimizer.lr or pass --precision fp32"
            )
    return dict(zip(Measured._fields, values.mean(0).tolist(), strict=True))


def attack_at(config: AttackConfig, progress: float, *, least_steps: int = 0) -> PGD:
    """The attack at this share of the run; no steps while eps is 0.

    least_steps: where the recipe has fewer steps, so many, together as long as the recipe's.
    """
    eps, step_size = config.eps_at(progress), config.step_size_at(progress)
    steps = config.steps_at(progress) if eps > 0 else 0
    if 0 < steps < least_steps:
        step_size, steps = step_size * steps / least_steps, least_steps
    return PGD(eps, step_size, steps, norm=config.norm, random_start=config.random_start and eps > 0)


def at_side(x: Tensor, attack: PGD, side: int) -> tuple[Tensor, PGD]:
    """x [N,C,H,W] resized to side x side pixels, and the attack on it.

    The ball and its steps shrink as the norm of a flat change does. Early in a run small images teach nearly as much,
    for less work.
    """
    if (side, side) == x.shape[2:]:
        return x, attack
    small = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)
    small = small.contiguous(memory_format=torch.channels_last)
    length = NORMS[attack.norm].length
    flat, flat_small = (torch.ones(1, *images.shape[1:]) for images in (x, small))  # on the CPU: the device runs on
    shrink = float(length(flat_small) / length(flat))
    return small, replace(attack, eps=shrink * attack.eps, step_size=shrink * attack.step_size)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD on all parameters of the model; train_step sets the learning rate of each step."""
    fields = config.optimizer
    return torch.optim.SGD(
        model.parameters(),
        lr=fields.lr,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        nesterov=fields.nesterov,
    )


def make_objective(config: TrainConfig) -> Objective:
    """The objective that config.objective.name stands for."""
    if config.objective.name == "trades":
        return Trades(config.objective.beta, config.label_smoothing)
    return CrossEntropy(config.label_smoothing)


def lr_factor(config: TrainConfig) -> Callable[[float], float]:
    """Factor of the peak learning rate, by progress: the finished share of the run in [0,1]."""
    if config.optimizer.schedule == "one_cycle":
        return one_cycle(config.optimizer.warmup)
    if config.optimizer.schedule == "cosine":
        return cosine
    if config.optimizer.schedule == "constant":
        return lambda progress: 1.0
    return step_decay(config.optimizer.step_epochs, config.epochs)


def cosine(progress: float) -> float:
    """Factor of the peak rate, 1 falling to 0. Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(warmup: float) -> Callable[[float], float]:
    """Factor of the peak rate: a linear rise over the share `warmup`, then a cosine to 0. Smith & Topin 2018."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return cosine((progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0

    return factor


def step_decay(step_epochs: int, epochs: int) -> Callable[[float], float]:
    """Factor of the peak learning rate, 0.1 times less every step_epochs epochs."""
    return lambda progress: 0.1 ** int(progress * epochs / step_epochs + 1e-9)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_u8: Tensor,
    y: Tensor,
    config: TrainConfig,
    *,
    num_classes: int,
    attack: PGD,
    step: int,
    progress: float,
    victim: nn.Module | None = None,
    ranks: Ranks = ALONE,
    energy: "Energy | None" = None,
) -> Measured:
    """One optimizer step: the number `step` of the run, at the finished share `progress` of it.

    x_u8, y: this rank's part of the batch. victim: computes what the model does in evaluation mode; is attacked in its
    place. energy: of objective energy, whose loss is added.
    """
    draws = generator(x_u8.device, config.seed, STEP, step)
    x = augment(to_float(x_u8), config.augment, draws, ranks)
    y_mixed = y
    if config.augment.mix != "none":  # with any image of the whole batch
        mixed = mix(whole(x, ranks), whole(y, ranks), num_classes, config.augment, draws)
        x, y_mixed = (part(values, ranks) for values in mixed)
    if config.resize is not None:
        x, attack = at_side(x, attack, at(config.resize, progress))
    objective = make_objective(config)
    noise = noise_for(config, x, len(x) * ranks.world, draws, ranks)
    seen = under(noise, model)
    x_adv = objective.attacked(under(noise, victim or model), attack, x, y_mixed, draws, ranks)
    loss, logits = objective.loss(seen, x, x_adv, y_mixed)
    if energy:
        pair = energy.pair(victim or model, x_u8, y, step, draws, ranks)
        loss = loss + energy.loss(model, pair, progress, ranks)

    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.lr * lr_factor(config)(progress)
    optimizer.zero_grad()
    if config.objective.awp:
        with adversarial_weights(model, loss, config.objective.awp, ranks):
            objective.loss(seen, x, x_adv, y_mixed)[0].backward()
    else:
        loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    loss, accuracy = loss.detach(), (logits.detach().argmax(1) == y).float().mean()
    average([*gradients, loss, accuracy], ranks)
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.step()
    return Measured(loss, accuracy, grad_norm)
