"""What the training loop trains: a recipe in numbers, and networks with the step that trains them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from refine.generators.functions import FunctionSampler
from refine.generators.sampler import Sampler
from robust_models.classifier import Precision

Batch = tuple[Tensor, Tensor]  # x [N,3,32,32] in [-1,1], y int64 [N]
SIZE = 32  # pixels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a training. Width: channels where the images are largest, or of every block of a ResNet."""

    network: Literal["cnn", "resnet", "unet"] = "cnn"
    steps: int  # of the generator
    width: int
    batch_size: int
    lr: float
    lr_discriminator: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    n_dis: int = 1  # steps of the discriminator for one of the generator
    warmup: int = 0  # steps in which the learning rate rises to lr
    decay: bool = False  # the learning rate falls to 0, linearly
    ema: float = 0.0  # decay of the generator's moving average; 0: no average
    flip: bool = True

    def lr_factor(self, step: int) -> float:
        """By what the learning rates are multiplied at step number `step`, from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * (1 - step / self.steps if self.decay else 1.0)


@dataclass(frozen=True)
class Setting:
    """What networks are built for."""

    recipe: Recipe
    num_classes: int
    device: torch.device
    precision: Precision


class Trainable(ABC):
    """Networks in training. `networks` has "generator", whose moving average is what makes the samples."""

    networks: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]
    batches_per_step = 1

    @abstractmethod
    def step(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """One step of the generator on batches_per_step batches of real images; its losses, as scalars."""

    @abstractmethod
    def as_in_training(self, generator: nn.Module, batch: Batch) -> None:
        """Passes a batch through a generator as training does: batch norms learn their statistics from it."""

    @abstractmethod
    def sampler(self, generator: nn.Module, device: torch.device) -> Sampler:
        """What makes images with a generator of this kind."""


@dataclass(frozen=True)
class Model:
    """A kind of generator: its recipes by name, the usual one first, and what builds it."""

    about: str
    recipes: Mapping[str, Recipe]
    build: Callable[[Setting], Trainable]


def adam(network: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """The loop multiplies initial_lr by the recipe's lr_factor."""
    group = {"params": list(network.parameters()), "initial_lr": lr}
    return torch.optim.Adam([group], lr=lr, betas=betas, fused=True)


@contextmanager
def computing(network: nn.Module, precision: Precision) -> Iterator[None]:
    """Inside, the network's convolutions and matrix products are in the precision.

    Spectral norms are not: each is computed before, in float32, by one step of its power iteration for all calls of
    the network inside.
    """
    with parametrize.cached():
        for module in network.modules():
            if parametrize.is_parametrized(module):
                _ = module.weight
        device = next(network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            yield


def function_sampler(generator: Any, device: torch.device) -> FunctionSampler:
    """Of a generator of noise, which states z_shape, num_classes and pixels."""
    return FunctionSampler(generator, generator.z_shape, generator.num_classes, {}, generator.pixels, device)
