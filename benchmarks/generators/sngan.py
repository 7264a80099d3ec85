"""SNGAN: hinge loss, the discriminator's weights normalised by their largest singular values.

Miyato et al. 2018, arXiv:1802.05957. The published recipe is mimicry's: FID 16.77, IS 7.97 there (50,000 images). The
other one is made for two CPU cores: the convolutional networks at half their width, one step of the discriminator at
twice the generator's learning rate (Heusel et al. 2017, arXiv:1706.08500), a moving average.
"""

from torch import nn

from benchmarks.generators import cnn, resnet
from benchmarks.generators.gan import Adversarial
from benchmarks.generators.layers import Discriminator, add_spectral_norms
from benchmarks.generators.model import Model, Recipe, Setting

CPU = Recipe(
    network="cnn",
    steps=40_000,
    width=32,
    batch_size=64,
    lr=2e-4,
    lr_discriminator=4e-4,
    betas=(0.0, 0.9),
    ema=0.999,
)
PUBLISHED = Recipe(
    network="resnet",
    steps=100_000,
    width=256,
    batch_size=64,
    lr=2e-4,
    betas=(0.0, 0.9),
    n_dis=5,
    decay=True,
    flip=False,
)
RECIPES = {"cpu": CPU, "published": PUBLISHED}


def pair(
    recipe: Recipe, *, num_classes: int | None = None, turns: bool = False, pool: str = "sum"
) -> tuple[nn.Module, Discriminator]:
    """A generator and a discriminator of the recipe's kind; a ResNet's discriminator is half as wide."""
    if recipe.network == "resnet":
        generator = resnet.Generator(recipe.width, num_classes)
        return generator, resnet.discriminator(recipe.width // 2, num_classes=num_classes, turns=turns, pool=pool)
    return cnn.Generator(recipe.width, num_classes), cnn.discriminator(
        recipe.width, num_classes=num_classes, turns=turns
    )


def build(setting: Setting) -> Adversarial:
    generator, discriminator = pair(setting.recipe)
    add_spectral_norms(discriminator)
    return Adversarial(generator, discriminator, setting, "hinge")


MODEL = Model("hinge loss, spectral norm", RECIPES, build)
