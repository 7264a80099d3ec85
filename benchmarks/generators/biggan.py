"""BigGAN on 32x32 images, and the same with DiffAugment, in the settings of the latter's CIFAR-10 runs. For a GPU.

Brock et al. 2019, arXiv:1809.11096; Zhao et al. 2020, arXiv:2006.10738 (N 10,000: FID 9.59 and 8.70, IS 9.06 and 9.16
after 1,000 epochs). cGAN-PD's ResNets with spectral norm in the generator too, a discriminator as wide as the
generator, and weights that begin as N(0, 0.02). The moving average grows slow as it learns, in place of a start at step
1,000.
"""

from benchmarks.generators import resnet
from benchmarks.generators.augment import translation_cutout
from benchmarks.generators.gan import Adversarial, Extras
from benchmarks.generators.layers import add_spectral_norms, init_normal
from benchmarks.generators.model import Model, Recipe, Setting

PUBLISHED = Recipe(
    network="resnet",
    steps=250_000,  # 1,000 epochs of 50,000 images, four batches to a step
    width=256,
    batch_size=50,
    lr=2e-4,
    betas=(0.0, 0.999),
    n_dis=4,
    ema=0.9999,
)


def build(setting: Setting) -> Adversarial:
    return _build(setting, Extras())


def build_with_augment(setting: Setting) -> Adversarial:
    return _build(setting, Extras(augment=translation_cutout))


def _build(setting: Setting, extras: Extras) -> Adversarial:
    width, num_classes = setting.recipe.width, setting.num_classes
    generator = resnet.Generator(width, num_classes, upsampling="nearest")
    discriminator = resnet.discriminator(width, num_classes=num_classes)
    for network in (generator, discriminator):
        init_normal(network)
        add_spectral_norms(network)
    return Adversarial(generator, discriminator, setting, "hinge", extras)


BIGGAN = Model("wider cGAN-PD, spectral norm in both networks", {"published": PUBLISHED}, build)
DIFF_BIGGAN = Model("BigGAN with DiffAugment", {"published": PUBLISHED}, build_with_augment)
