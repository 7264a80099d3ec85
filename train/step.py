"""One training step: augment, attack, descend. Nothing here waits for the device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_models.attacks import PGD
from robust_models.images import to_float
from robust_models.runtime.seeds import STEP, generator
from train.augment import augment
from train.config import AttackConfig, TrainConfig
from train.objectives import adversarial_cross_entropy
from train.schedule import one_cycle, step_decay


def attack_at(config: AttackConfig, progress: float) -> PGD:
    """The attack at this share of the run; no steps where eps is 0."""
    return PGD(
        eps=config.eps,
        step_size=config.step_size_at(progress),
        steps=config.steps_at(progress) if config.eps > 0 else 0,
        norm=config.norm,
        random_start=config.random_start and config.eps > 0,
    )


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    fields = config.optimizer
    return torch.optim.SGD(
        model.parameters(),
        lr=fields.lr,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        nesterov=fields.nesterov,
    )


def lr_factor(config: TrainConfig) -> Callable[[float], float]:
    if config.optimizer.schedule == "one_cycle":
        return one_cycle(config.optimizer.warmup)
    return step_decay(config.optimizer.step_epochs, config.epochs)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_u8: Tensor,
    y: Tensor,
    config: TrainConfig,
    *,
    step: int,
    progress: float,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; gives loss and accuracy on the attacked batch as 0-d tensors still on the device."""
    draws = generator(x_u8.device, config.seed, STEP, step)
    x = augment(to_float(x_u8), config.augment, draws)
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.lr * lr_factor(config)(progress)
    attack = attack_at(config.attack, progress)
    loss, logits = adversarial_cross_entropy(
        model, attack, x, y, label_smoothing=config.label_smoothing, generator=draws
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.detach().argmax(1) == y).float().mean()
