"""Adversarial training: losses, and the steps of a discriminator and a generator."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generators.layers import Discriminator
from benchmarks.generators.model import Batch, Setting, Trainable, adam, computing, function_sampler
from refine.generators.functions import FunctionSampler


@dataclass(frozen=True)
class Loss:
    """Means over a batch of logits [N]."""

    real: Callable[[Tensor], Tensor]  # of the discriminator, on real images
    fake: Callable[[Tensor], Tensor]  # of the discriminator, on made ones
    generator: Callable[[Tensor], Tensor]


def _critic(fake: Tensor) -> Tensor:
    return -fake.mean()


LOSSES = {
    # Goodfellow et al. 2014; the generator's is the non-saturating form
    "cross-entropy": Loss(
        real=lambda real: F.softplus(-real).mean(),
        fake=lambda fake: F.softplus(fake).mean(),
        generator=lambda fake: F.softplus(-fake).mean(),
    ),
    # Lim & Ye 2017, arXiv:1705.02894
    "hinge": Loss(
        real=lambda real: (1 - real).relu().mean(), fake=lambda fake: (1 + fake).relu().mean(), generator=_critic
    ),
    # Arjovsky et al. 2017, arXiv:1701.07875
    "wasserstein": Loss(real=lambda real: -real.mean(), fake=lambda fake: fake.mean(), generator=_critic),
}


@dataclass(frozen=True)
class Extras:
    """What a GAN has beside its loss; None or 0: it has not."""

    gradient_penalty: float = 0.0  # weight
    turns: tuple[float, float] | None = None  # weights of telling rotations: of real images for D, of made ones for G
    augment: Callable[[Tensor], Tensor] | None = None  # images before the discriminator


class Adversarial(Trainable):
    """A generator of (z, y), or of z alone, against a discriminator of (x, y) or x.

    Every step of the discriminator draws fresh real and made images; made ones are asked for classes at random.
    """

    def __init__(
        self,
        generator: Any,  # states z_shape, num_classes and pixels
        discriminator: Discriminator,
        setting: Setting,
        loss: Literal["cross-entropy", "hinge", "wasserstein"],
        extras: Extras = Extras(),
    ) -> None:
        recipe = setting.recipe
        self.setting, self.loss, self.extras = setting, LOSSES[loss], extras
        self.networks = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
        self.networks.to(setting.device).to(memory_format=torch.channels_last)
        self.optimizers = {
            "generator": adam(generator, recipe.lr, recipe.betas),
            "discriminator": adam(discriminator, recipe.lr_discriminator or recipe.lr, recipe.betas),
        }
        self.batches_per_step = recipe.n_dis
        self.generator, self.discriminator = generator, discriminator

    def step(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Losses of the last step of the discriminator, and of the generator's."""
        losses: dict[str, Tensor] = {}
        for x, y in batches:
            losses = self._discriminator_step(x, y)
        return losses | self._generator_step(self.setting.recipe.batch_size)

    def as_in_training(self, generator: nn.Module, batch: Batch) -> None:
        generator(*self._noise(len(batch[0])))

    def sampler(self, generator: nn.Module, device: torch.device) -> FunctionSampler:
        return function_sampler(generator, device)

    def _discriminator_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z, *y_fake = self._noise(len(x))
        with torch.no_grad(), computing(self.generator, self.setting.precision):
            x_fake = self.generator(z, *y_fake)
        both = self._augmented(torch.cat([x, x_fake]))
        classes = [torch.cat([y, one]) for one in y_fake]
        losses: dict[str, Tensor] = {}
        with computing(self.discriminator, self.setting.precision):
            real, fake = self.discriminator(both, *classes).chunk(2)
            total = losses["d"] = self.loss.real(real) + self.loss.fake(fake)
            if self.extras.turns:
                losses["d_turns"] = turn_loss(self.discriminator, x)
                total = total + self.extras.turns[0] * losses["d_turns"]
        if self.extras.gradient_penalty:  # its second derivatives are of differences too small for bf16
            losses["penalty"] = gradient_penalty(self.discriminator, x, x_fake)
            total = total + self.extras.gradient_penalty * losses["penalty"]
        self._descend("discriminator", total)
        return {"real": real.mean(), "fake": fake.mean(), **losses}

    def _generator_step(self, n: int) -> dict[str, Tensor]:
        z, *y = self._noise(n)
        self.discriminator.requires_grad_(False)  # saves the gradients of its weights, which nobody would use
        losses: dict[str, Tensor] = {}
        with computing(self.generator, self.setting.precision):
            x_fake = self.generator(z, *y)
        with computing(self.discriminator, self.setting.precision):
            total = losses["g"] = self.loss.generator(self.discriminator(self._augmented(x_fake), *y))
            if self.extras.turns:
                losses["g_turns"] = turn_loss(self.discriminator, x_fake)
                total = total + self.extras.turns[1] * losses["g_turns"]
        self._descend("generator", total)
        self.discriminator.requires_grad_(True)
        return losses

    def _noise(self, n: int) -> tuple[Tensor, ...]:
        """z [n,...], and classes [n] where there are any."""
        device = self.setting.device
        z = torch.randn(n, *self.generator.z_shape, device=device)
        if self.generator.num_classes is None:
            return (z,)
        return z, torch.randint(self.generator.num_classes, (n,), device=device)

    def _augmented(self, x: Tensor) -> Tensor:
        return self.extras.augment(x) if self.extras.augment else x

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def gradient_penalty(discriminator: nn.Module, x: Tensor, x_fake: Tensor) -> Tensor:
    """Mean of (||grad D|| - 1)^2 at a random point between each real image and a made one.

    Gulrajani et al. 2017, arXiv:1704.00028.
    """
    share = torch.rand(len(x), 1, 1, 1, device=x.device)
    between = (share * x + (1 - share) * x_fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def turned(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first quarter of a batch as it is, the others by 90, 180 and 270 degrees; and by how many quarter turns."""
    parts = x.tensor_split(4)
    turns = torch.cat([torch.full((len(part),), k, device=x.device) for k, part in enumerate(parts)])
    return torch.cat([part.rot90(k, (2, 3)) for k, part in enumerate(parts)]), turns


def turn_loss(discriminator: Discriminator, x: Tensor) -> Tensor:
    """Cross-entropy of telling by how much images are rotated (Chen et al. 2019, arXiv:1811.11212)."""
    x, turns = turned(x)
    return F.cross_entropy(discriminator(x, turns=True), turns)
