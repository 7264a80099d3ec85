"""cGAN-PD: an SNGAN of classes, by conditional batch norm in the generator and projection in the discriminator.

Miyato & Koyama 2018, arXiv:1802.05637. The published recipe is mimicry's: FID 10.84, IS 8.25 there (50,000 images).
"""

from benchmarks.generators.gan import Adversarial
from benchmarks.generators.layers import add_spectral_norms
from benchmarks.generators.model import Model, Setting
from benchmarks.generators.sngan import RECIPES, pair


def build(setting: Setting) -> Adversarial:
    generator, discriminator = pair(setting.recipe, num_classes=setting.num_classes)
    add_spectral_norms(discriminator)
    return Adversarial(generator, discriminator, setting, "hinge")


MODEL = Model("class-conditional SNGAN with a projection discriminator", RECIPES, build)
