"""A small class-conditional convolutional VAE: the weak generator of the demo and the measurements.

Kingma & Welling 2014, arXiv:1312.6114; Sohn et al. 2015. The pixels' Gaussian has one variance, set to its optimum in
every batch (sigma-VAE, arXiv:2006.13202), so that no weight between the two terms has to be chosen. The bundled samples
`vae-cifar10.npz` come from these networks, trained by the code of revision 59c6667.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generators.model import (
    Batch,
    Model,
    Recipe,
    Setting,
    Trainable,
    adam,
    computing,
    function_sampler,
)
from refine.generators.functions import FunctionSampler

LATENT = 64
CPU = Recipe(steps=3120, width=16, batch_size=128, lr=2e-3, warmup=300, decay=True, ema=0.998)


class Encoder(nn.Module):
    """x [N,3,32,32] in [0,1], y [N] -> mean and logarithm of the variance of z, [N,64] each."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for before, after in pairwise([3, 2 * width, 4 * width, 8 * width]):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.posterior = nn.Linear(128 * width + num_classes, 2 * LATENT)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.posterior(_with_class(self.trunk(x), y, self.num_classes)).float().chunk(2, dim=1)
        return mean, log_var


class Decoder(nn.Module):
    """z [N,64], y [N] -> mean image [N,3,32,32] in [0,1]."""

    pixels = "unit"

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.z_shape = (LATENT,)
        self.num_classes = num_classes
        planes = [8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = [
            nn.Linear(LATENT + num_classes, 16 * planes[0]),
            nn.Unflatten(1, (planes[0], 4, 4)),
        ]
        for before, after in pairwise(planes):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.layers(_with_class(z, y, self.num_classes)).float().sigmoid()


class VariationalAutoencoder(Trainable):
    def __init__(self, setting: Setting) -> None:
        recipe = setting.recipe
        self.setting = setting
        self.encoder = Encoder(recipe.width, setting.num_classes)
        self.decoder = Decoder(recipe.width, setting.num_classes)
        self.networks = nn.ModuleDict({"generator": self.decoder, "encoder": self.encoder})
        self.networks.to(setting.device).to(memory_format=torch.channels_last)
        self.optimizers = {"both": adam(self.networks, recipe.lr, recipe.betas)}

    def step(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        ((x, y),) = batches
        x = (x + 1) / 2
        with computing(self.networks, self.setting.precision):
            mean, log_var = self.encoder(x, y)
            decoded = self.decoder(_drawn(mean, log_var), y)
        losses = bound(x, decoded, mean, log_var)
        self.optimizers["both"].zero_grad()
        sum(losses.values(), start=x.new_zeros(())).backward()
        self.optimizers["both"].step()
        return losses

    def as_in_training(self, generator: nn.Module, batch: Batch) -> None:
        x, y = batch
        generator(_drawn(*self.encoder((x + 1) / 2, y)), y)

    def sampler(self, generator: nn.Module, device: torch.device) -> FunctionSampler:
        return function_sampler(generator, device)


def bound(x: Tensor, decoded: Tensor, mean: Tensor, log_var: Tensor) -> dict[str, Tensor]:
    """The two terms of the negative evidence lower bound per image, in nats up to a constant."""
    return {
        "reconstruction": 0.5 * x[0].numel() * F.mse_loss(decoded, x).log(),
        "divergence": 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean(),
    }


def _drawn(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * (0.5 * log_var).exp()


def _with_class(values: Tensor, y: Tensor, num_classes: int) -> Tensor:
    return torch.cat([values, F.one_hot(y, num_classes).to(values.dtype)], dim=1)


MODEL = Model("small class-conditional VAE, the weak one of the bundled samples", {"cpu": CPU}, VariationalAutoencoder)
