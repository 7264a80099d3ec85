"""Refine what a GAN generates, batch by batch, in the loop that samples it.

    python examples/gan_loop.py --out samples.npz --num-images 256 --eps 3

The generator here has random weights: put your own in its place. It works in [-1,1], as most GANs do, and is
class-conditional, so each image is refined towards the class it was asked for.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import robust_models
from refine import Refiner


class Generator(nn.Module):
    """z [N,dim], y [N] -> images [N,3,size,size] in [-1,1]."""

    def __init__(self, dim: int = 64, classes: int = 10, size: int = 32) -> None:
        super().__init__()
        self.dim, self.classes, self.size = dim, classes, size
        self.embed = nn.Embedding(classes, dim)
        self.net = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 3 * size * size), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.net(z + self.embed(y)).view(-1, 3, self.size, self.size)


@torch.inference_mode()
def samples(generator: Generator, refiner: Refiner, n: int, batch_size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """n refined images and their classes, in batches."""
    for start in range(0, n, batch_size):
        y = torch.arange(start, min(start + batch_size, n)) % generator.classes
        yield refiner(generator(torch.randn(len(y), generator.dim), y), y), y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--eps", type=float, default=3.0)
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("samples.npz"))
    args = parser.parse_args()

    refiner = Refiner(robust_models.load(args.ckpt), eps=args.eps, pixel_range=(-1, 1))
    images, labels = zip(*samples(Generator().eval(), refiner, args.num_images), strict=True)
    pixels = robust_models.to_u8((torch.cat(images) + 1) / 2).permute(0, 2, 3, 1)
    np.savez(args.out, arr_0=pixels.numpy(), arr_1=torch.cat(labels).numpy())
    print(f"{args.num_images} refined samples in {args.out}")


if __name__ == "__main__":
    main()
