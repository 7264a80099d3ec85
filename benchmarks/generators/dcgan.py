"""A small class-conditional DCGAN: a weak generator of another family than the VAE.

Radford et al. 2016, arXiv:1511.06434, with a discriminator of spectral norm and projection. The bundled samples
`dcgan-cifar10.npz` come from these networks, trained by the code of revision 59c6667.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generators.gan import Adversarial
from benchmarks.generators.layers import Discriminator, add_spectral_norms
from benchmarks.generators.model import Model, Recipe, Setting

LATENT = 100
CPU = Recipe(
    steps=3120,  # 8 epochs of 50,000 images
    width=16,
    batch_size=128,
    lr=2e-4,
    lr_discriminator=4e-4,
    betas=(0.5, 0.999),
    ema=0.998,
)


class Generator(nn.Module):
    """z [N,100], y [N] -> x [N,3,32,32] in [-1,1]."""

    pixels = "symmetric"

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.z_shape = (LATENT,)
        self.num_classes = num_classes
        planes = [8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = [
            nn.Linear(LATENT + num_classes, 16 * planes[0], bias=False),
            nn.Unflatten(1, (planes[0], 4, 4)),
            nn.BatchNorm2d(planes[0]),
            nn.ReLU(),
        ]
        for before, after in pairwise(planes):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([z, F.one_hot(y, self.num_classes).float()], dim=1)).float().tanh()


def build(setting: Setting) -> Adversarial:
    width, num_classes = setting.recipe.width, setting.num_classes
    trunk: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(0.2)]
    for before, after in pairwise([width, 2 * width, 4 * width, 8 * width]):
        trunk += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    discriminator = Discriminator(nn.Sequential(*trunk, nn.Flatten()), 128 * width, num_classes=num_classes)
    add_spectral_norms(discriminator)
    return Adversarial(Generator(width, num_classes), discriminator, setting, "cross-entropy")


MODEL = Model("small class-conditional DCGAN, the weak one of the bundled samples", {"cpu": CPU}, build)
