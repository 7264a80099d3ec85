"""Norm balls around an image: the geometry that training, refinement and evaluation share.

Pixels are in [0,1]; eps and step sizes are in those units. The [0,1] box is the attack's business, not the ball's.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N,1,...,1], to broadcast against like [N,...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


class Norm(ABC):
    """One threat-model geometry; every method takes and gives a batch [N,...]."""

    name: str
    eps_max: float  # a larger radius cannot be meant (no bound for norms that grow with the number of pixels)

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """Norm of each sample, [N]."""

    @abstractmethod
    def project(self, delta: Tensor, eps: float) -> Tensor:
        """Nearest point (in L2) to each sample of delta inside the eps-ball. Madry et al. 2018, arXiv:1706.06083."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Direction of length 1 along which a linear function with this gradient grows fastest; 0 where it is flat."""

    @abstractmethod
    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        """Uniform draw from the eps-ball, one per sample of like."""


@dataclass(frozen=True)
class L2(Norm):
    name: str = "l2"
    eps_max: float = math.inf

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        scale = (eps / self.length(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1.0)
        return delta * per_sample(scale, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Divide by the largest entry first: the square of a gradient of a confident network underflows in float32.
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_sample(largest, gradient)
        return scaled / per_sample(self.length(scaled).clamp_min(0.5), gradient)

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        direction = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        volume = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        radius = eps * volume ** (1.0 / like[0].numel())  # uniform in volume: nearly all of it lies at the surface
        return direction * per_sample(radius / self.length(direction), like)


@dataclass(frozen=True)
class Linf(Norm):
    name: str = "linf"
    eps_max: float = 1.0

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(dim=1)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta.clamp(-eps, eps)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        return eps * (2 * torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) - 1)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (L2(), Linf())}


@dataclass(frozen=True)
class ThreatModel:
    """What a classifier was trained to withstand: a norm by name and a radius (pixels in [0,1])."""

    norm: str
    eps: float

    def __str__(self) -> str:
        return f"{self.norm} eps {self.eps:g}"


def check_ball(norm: str, eps: float) -> None:
    """ValueError for an unknown norm, and for an eps that cannot be meant in [0,1] pixels (the slip: 8 for 8/255)."""
    if norm not in NORMS:
        raise ValueError(f"norm: {norm!r} is none of {', '.join(NORMS)}")
    if eps > NORMS[norm].eps_max:
        raise ValueError(
            f"eps: {eps:g} is outside [0, {NORMS[norm].eps_max:g}] for norm={norm} (pixels are in [0,1]); "
            f"did you mean {eps:g}/255 = {eps / 255:.4f}?"
        )
