"""A class-conditional convolutional VAE on 32x32 images: the weak generator of the demo and the measurements.

    python -m benchmarks.generators.vae --data cifar10 --out vae10k.npz --num-images 10000

Kingma & Welling 2014; Sohn et al. 2015. Trains, then writes samples from the prior with the classes they were asked
for, as many of each. The same seed and machine give the same bytes; fewer images are the first of more.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generators.samples import flipped_at_random, generator_flags, shuffled_batches, write_samples
from robust_models.datasets import load_dataset
from robust_models.images import to_float

LATENT = 64


def _down(in_planes: int, planes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_planes, planes, 4, 2, 1, bias=False), nn.BatchNorm2d(planes), nn.SiLU())


def _up(in_planes: int, planes: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(in_planes, planes, 4, 2, 1, bias=False), nn.BatchNorm2d(planes), nn.SiLU())


class VAE(nn.Module):
    """x [N,3,32,32] in [0,1], given its class. The pixels' Gaussian has one variance, set to its optimum in every batch
    (sigma-VAE, arXiv:2006.13202), so that no weight between the two terms has to be chosen."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk = nn.Sequential(_down(3, 32), _down(32, 64), _down(64, 128), nn.Flatten())
        self.posterior = nn.Linear(128 * 16 + num_classes, 2 * LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT + num_classes, 128 * 16), nn.Unflatten(1, (128, 4, 4)),
            _up(128, 64), _up(64, 32), _up(32, 16),
            nn.Conv2d(16, 3, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Negative evidence lower bound per image, in nats up to a constant."""
        mean, log_var = self.posterior(self._with_class(self.trunk(x), y)).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        error = F.mse_loss(self.decode(z, y), x)
        reconstruction = 0.5 * x[0].numel() * error.log()
        divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        return reconstruction + divergence

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """z [N,LATENT], y [N] -> mean image [N,3,32,32]."""
        return self.decoder(self._with_class(z, y))

    def _with_class(self, values: Tensor, y: Tensor) -> Tensor:
        return torch.cat([values, F.one_hot(y, self.num_classes).float()], dim=1)


def main() -> None:
    args = generator_flags(__doc__ or "", epochs=8).parse_args()
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    data = load_dataset(args.data, "train")
    num_classes = len(data.class_names)
    model = VAE(num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    steps = len(data.x_u8) // args.batch_size * args.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for epoch in range(args.epochs):
        total = torch.zeros(())
        batches = shuffled_batches(len(data.x_u8), args.batch_size)
        for index in batches:
            x = to_float(data.x_u8[index]).contiguous(memory_format=torch.channels_last)
            loss = model.loss(flipped_at_random(x), data.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {total / len(batches):.1f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )

    model.eval()
    write_samples(args.out, args.num_images, num_classes, lambda y: model.decode(torch.randn(len(y), LATENT), y))
    print(f"{args.out}: {args.num_images} images, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
