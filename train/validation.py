"""How good the classifier is on held-out images, and whether its attack still means something."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_models.attacks import PGD, frozen_eval
from robust_models.classifier import RobustClassifier
from robust_models.datasets import Dataset
from robust_models.images import to_float, to_u8
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.seeds import EVALUATION, generator
from train.augment import noise_for, under
from train.config import TrainConfig
from train.parallel import ALONE, part, starts

BATCH = 250
SCORES, GUARD, PICTURE = range(3)  # streams of the EVALUATION purpose


@dataclass(frozen=True)
class Together:
    """How ranks evaluate: each a part of every batch. `between` is called before each batch, equally often by all."""

    ranks: Ranks = ALONE
    between: Callable[[], None] = lambda: None


ONE_PROCESS = Together()


def validate(
    model: RobustClassifier, data: Dataset, config: TrainConfig, together: Together = ONE_PROCESS
) -> dict[str, float]:
    """Clean accuracy and, where the recipe has an attack, PGD accuracy (fractions) on the held-out images.

    Both under the recipe's noise, where it has some.
    """
    if len(data) == 0:
        return {}
    clean = "noisy_accuracy" if config.smoothing.sigma or config.noised else "clean_accuracy"
    scores = {"n": float(len(data)), clean: accuracy(model, data, None, config, SCORES, together)}
    if config.attack.radius > 0:
        attack = judging_attack(config, config.attack.radius)
        scores["robust_accuracy"] = accuracy(model, data, attack, config, SCORES, together)
    return scores


def selection(scores: dict[str, float]) -> float:
    """What "best" means: robust accuracy where there is an attack; with nothing held out, always the latest.

    Objective energy has a measure of its own.
    """
    for name in ("selection", "robust_accuracy", "noisy_accuracy", "clean_accuracy"):
        if name in scores:
            return scores[name]
    return math.inf


def judging_attack(config: TrainConfig, eps: float) -> PGD:
    """PGD with validate.steps steps from a random start, each 2.5 * eps / steps long; eps: pixels in [0,1]."""
    steps = config.validate.steps
    return PGD(eps, 2.5 * eps / steps, steps, norm=config.attack.norm, random_start=True)


def accuracy(
    model: RobustClassifier,
    data: Dataset,
    attack: PGD | None,
    config: TrainConfig,
    stream: int,
    together: Together = ONE_PROCESS,
) -> float:
    """Share of the images that the model, in evaluation mode, gets right, attacked where there is an attack."""
    ranks = together.ranks
    device = model.mean.device
    draws = generator(device, config.seed, EVALUATION, stream)
    correct = 0
    with frozen_eval(model):
        for start in range(0, len(data), BATCH):
            together.between()
            batch = data[start : start + BATCH]
            x, y = to_float(part(batch.x_u8, ranks).to(device)), part(batch.y, ranks).to(device)
            begin = starts(attack, len(batch), x, draws, ranks) if attack else None
            seen = under(noise_for(config, x, len(batch), draws, ranks), model)
            if len(y) == 0:
                continue
            if attack:
                x = attack(seen, x, y, start=begin)
            with torch.no_grad():
                correct += int((seen(x).argmax(1) == y).sum())
    return ranks.total(correct) / len(data)


def overfitting(
    model: RobustClassifier, data: Dataset, attack: PGD, config: TrainConfig, together: Together = ONE_PROCESS
) -> dict[str, float]:
    """Accuracy under the training attack and under PGD on held-out images.

    A network that has learnt to withstand its weak training attack only does well on the first and badly on the second:
    catastrophic overfitting. Wong et al. 2020, arXiv:2001.03994.
    """
    some = data[: config.guard.images]
    return {
        "training_attack": accuracy(model, some, attack, config, GUARD, together),
        "pgd": accuracy(model, some, judging_attack(config, attack.eps), config, GUARD, together),
        "attack_steps": float(attack.steps),
    }


def picture(model: RobustClassifier, data: Dataset, config: TrainConfig) -> Tensor | None:
    """Held-out images above their attacked versions, uint8 [3,2*H,count*W]; None where there is nothing to show."""
    some = data[: config.validate.show]
    if len(some) == 0 or config.attack.radius == 0:
        return None
    device = model.mean.device
    x, y = to_float(some.x_u8.to(device)), some.y.to(device)
    attack = judging_attack(config, config.attack.radius)
    x_adv = attack(model, x, y, generator=generator(device, config.seed, EVALUATION, PICTURE))
    rows = [torch.cat(list(images), dim=2) for images in (some.x_u8, to_u8(x_adv).cpu())]
    return torch.cat(rows, dim=1)
