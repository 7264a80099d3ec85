"""A small class-conditional DCGAN on 32x32 images: a weak generator of another family than the VAE.

    python -m benchmarks.generators.dcgan --data cifar10 --out dcgan10k.npz --num-images 10000

Radford et al. 2016, arXiv:1511.06434; the discriminator is normalised spectrally (Miyato et al. 2018, arXiv:1802.05957)
and sees the class by projection (Miyato & Koyama 2018, arXiv:1802.05637). Samples come from a moving average of the
generator's weights. The same seed and machine give the same bytes.
"""

import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.generators.samples import flipped_at_random, generator_flags, shuffled_batches, write_samples
from robust_models.datasets import load_dataset
from robust_models.images import to_float

LATENT = 100
EMA_DECAY = 0.998


def _up(in_planes: int, planes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_planes, planes, 4, 2, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
    )


def _down(in_planes: int, planes: int) -> nn.Sequential:
    return nn.Sequential(spectral_norm(nn.Conv2d(in_planes, planes, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True))


class Generator(nn.Module):
    """z [N,LATENT], y [N] -> x [N,3,32,32] in [-1,1]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(LATENT + num_classes, 128 * 16, bias=False), nn.Unflatten(1, (128, 4, 4)),
            nn.BatchNorm2d(128), nn.ReLU(inplace=True),
            _up(128, 64), _up(64, 32), _up(32, 16), nn.Conv2d(16, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([z, F.one_hot(y, self.num_classes).float()], dim=1))


class Discriminator(nn.Module):
    """x [N,3,32,32] in [-1,1], y [N] -> how real, [N] logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            spectral_norm(nn.Conv2d(3, 16, 3, padding=1)), nn.LeakyReLU(0.2, inplace=True),
            _down(16, 32), _down(32, 64), _down(64, 128), nn.Flatten(),
        )  # fmt: skip
        self.real = spectral_norm(nn.Linear(128 * 16, 1))
        self.of_class = spectral_norm(nn.Embedding(num_classes, 128 * 16))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen = self.trunk(x)
        return self.real(seen).squeeze(1) + (seen * self.of_class(y)).sum(1)


def main() -> None:
    args = generator_flags(__doc__ or "", epochs=8).parse_args()
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    data = load_dataset(args.data, "train")
    num_classes = len(data.class_names)
    generator, discriminator = Generator(num_classes), Discriminator(num_classes)
    average = copy.deepcopy(generator)
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=4e-4, betas=(0.5, 0.999))
    for epoch in range(args.epochs):
        batches = shuffled_batches(len(data.x_u8), args.batch_size)
        totals = torch.zeros(2)
        for index in batches:
            y = data.y[index]
            x = 2 * flipped_at_random(to_float(data.x_u8[index])) - 1
            x_fake = generator(torch.randn(len(x), LATENT), y)
            real, fake = discriminator(torch.cat([x, x_fake.detach()]), torch.cat([y, y])).chunk(2)
            loss_d = F.softplus(-real).mean() + F.softplus(fake).mean()
            adam_d.zero_grad()
            loss_d.backward()
            adam_d.step()

            loss_g = F.softplus(-discriminator(x_fake, y)).mean()
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()
            _follow(average, generator)
            totals += torch.stack([loss_d.detach(), loss_g.detach()])
        d, g = (totals / len(batches)).tolist()
        print(f"epoch {epoch + 1}/{args.epochs} d {d:.3f} g {g:.3f} {time.perf_counter() - start:.0f} s", flush=True)

    average.eval()
    write_samples(args.out, args.num_images, num_classes, lambda y: (average(torch.randn(len(y), LATENT), y) + 1) / 2)
    print(f"{args.out}: {args.num_images} images, {time.perf_counter() - start:.0f} s")


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module) -> None:
    """Weights and batch norms' statistics alike: statistics of other weights would wash the samples out."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - EMA_DECAY)


if __name__ == "__main__":
    main()
