"""SSGAN: an SNGAN whose discriminator also tells by how much images are rotated, and whose generator helps it to.

Chen et al. 2019, arXiv:1811.11212. Weights 1 for the discriminator, on real images, and 0.2 for the generator, on made
ones. The published recipe is mimicry's: FID 14.65, IS 8.17 there (50,000 images).
"""

from benchmarks.generators.gan import Adversarial, Extras
from benchmarks.generators.layers import add_spectral_norms
from benchmarks.generators.model import Model, Setting
from benchmarks.generators.sngan import RECIPES, pair


def build(setting: Setting) -> Adversarial:
    generator, discriminator = pair(setting.recipe, turns=True)
    add_spectral_norms(discriminator)
    return Adversarial(generator, discriminator, setting, "hinge", Extras(turns=(1.0, 0.2)))


MODEL = Model("SNGAN that learns rotations too", RECIPES, build)
