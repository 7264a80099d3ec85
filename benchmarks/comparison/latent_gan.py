"""A generator and a discriminator as functions of noise, and what the methods that choose noise by them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.generators.functions import in_unit

Generators = Sequence[torch.Generator]


@dataclass(frozen=True)
class Scale:
    """slope * logit + offset: what makes a discriminator's logit the log-odds of being real."""

    slope: float = 1.0
    offset: float = 0.0


class LatentGan:
    """d(z, y) = discriminator(generator(z, y), y), scaled; counts the images that go through each network.

    generator: states z_shape, num_classes (None: y is None everywhere) and pixels. discriminator: takes such images.
    """

    in_pixels = False

    def __init__(self, generator: Any, discriminator: Any, device: torch.device, scale: Scale = Scale()) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.device, self.scale = device, scale
        self.z_shape: tuple[int, ...] = tuple(generator.z_shape)
        self.num_classes: int | None = generator.num_classes
        self._networks: int = getattr(discriminator, "networks", 1)
        names = ("generator", "generator backward", "discriminator", "discriminator backward")
        self.passes: dict[str, int] = dict.fromkeys(names, 0)

    def start(self, generators: Generators, y: Tensor | None) -> Tensor:
        """Where moving begins, a row from each generator of random numbers: noise z [n,...]."""
        return normal(generators, self.z_shape)

    @torch.no_grad()
    def images(self, z: Tensor, y: Tensor | None) -> Tensor:
        """[n,3,H,W] in [0,1]."""
        return in_unit(self._made(z, y), self.generator.pixels)

    @torch.no_grad()
    def logits(self, z: Tensor, y: Tensor | None) -> Tensor:
        """d [n], on the CPU."""
        return self.rated(self._made(z, y), y)

    @torch.no_grad()
    def rated(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Logits [n] of images in the generator's range, on the CPU."""
        return self._judged(x, y).cpu()

    def gradient(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """d [n] and its gradient by z [n,...], on the CPU."""
        with torch.enable_grad():
            z = z.to(self.device).requires_grad_(True)
            logits = self._judged(self._made(z, y), y)
            (gradient,) = torch.autograd.grad(logits.sum(), z)
        self.passes["discriminator backward"] += self._networks * len(z)
        self.passes["generator backward"] += 0 if self.in_pixels else len(z)
        return logits.detach().cpu(), gradient.cpu()

    def _made(self, z: Tensor, y: Tensor | None) -> Tensor:
        self.passes["generator"] += len(z)
        return self.generator(z.to(self.device), *self._classes(y))

    def _judged(self, x: Tensor, y: Tensor | None) -> Tensor:
        self.passes["discriminator"] += self._networks * len(x)
        return self.scale.slope * self.discriminator(x.to(self.device), *self._classes(y)) + self.scale.offset

    def _classes(self, y: Tensor | None) -> list[Tensor]:
        return [] if y is None else [y.to(self.device)]


class PixelGan(LatentGan):
    """d(x, y) = discriminator(x, y): in the place of noise stand images, which begin as the generator's samples."""

    in_pixels = True

    @torch.no_grad()
    def start(self, generators: Generators, y: Tensor | None) -> Tensor:
        return super()._made(super().start(generators, y), y).cpu()

    @torch.no_grad()
    def images(self, z: Tensor, y: Tensor | None) -> Tensor:
        return in_unit(z.clamp(-1 if self.generator.pixels == "symmetric" else 0, 1), self.generator.pixels)

    def _made(self, z: Tensor, y: Tensor | None) -> Tensor:
        return z


class Rival(ABC):
    """A method that chooses the noise of each image; a Sampler. Image k's choice follows from its own generator."""

    numbers: Mapping[str, int] = {}
    batch = None

    def __init__(self, gan: LatentGan) -> None:
        self.gan = gan

    @property
    def num_classes(self) -> int | None:
        return self.gan.num_classes

    def __call__(self, generators: Generators, y: Tensor | None, *, quick: bool = False) -> Tensor:
        """[n,3,H,W] in [0,1]. quick: of noise that nobody chose."""
        z = self.gan.start(generators, y) if quick else self.choose(generators, y)
        return self.gan.images(z, y)

    @abstractmethod
    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        """z [n,...] from the random numbers of n generators."""


class Unchosen(Rival):
    """The generator's own samples."""

    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        return self.gan.start(generators, y)


def normal(generators: Generators, shape: tuple[int, ...]) -> Tensor:
    """[n,*shape], row i from generators[i]."""
    return torch.stack([torch.randn(shape, generator=one) for one in generators])


def uniform(generators: Generators) -> Tensor:
    """[n] in [0,1), number i from generators[i]."""
    return torch.cat([torch.rand(1, generator=one) for one in generators])


def picked(y: Tensor | None, index: Tensor) -> Tensor | None:
    """y[index], where there are classes."""
    return None if y is None else y[index]


def of_class(values: Tensor, y: Tensor | None, n: int) -> Tensor:
    """values [num_classes] of n images' classes; of the one that there is where they have none."""
    return values[torch.zeros(n, dtype=torch.int64) if y is None else y.cpu()]
