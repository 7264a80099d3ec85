"""What an attack may spend, and what it plans to do with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robust_models.threat import NormName

Attempt = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (model, x, y, index of each image) -> x_adv

DEFAULT_STEPS = 20


@dataclass(frozen=True)
class Budget:
    """The ball and the effort; pixels in [0,1]. None leaves a choice to the attack."""

    norm: NormName
    eps: float
    num_classes: int
    steps: int | None = None
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    seed: int = 0
    early_stop: bool = True  # of our own PGD

    @property
    def ascent_steps(self) -> int:
        """Steps of an attack that walks along gradients."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @property
    def ascent_step_size(self) -> float:
        """Its step: 2.5 * eps / steps crosses the ball and more, as in Madry et al. 2018."""
        return 2.5 * self.eps / self.ascent_steps if self.step_size is None else self.step_size


@dataclass(frozen=True)
class Plan:
    """The attempts in their order, each under its label, and all settings they run with (JSON-ready)."""

    attempts: Mapping[str, Attempt]
    settings: Mapping[str, Any]
