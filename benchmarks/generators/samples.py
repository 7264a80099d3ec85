"""What the generators share: the flags, the real images to learn from, and samples with the classes asked for."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from robust_models.images import to_u8, write_npz

CHUNK = 500  # images sampled at a time


def generator_flags(about: str, *, epochs: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10, cifar10:DIR, an .npz or a folder")
    parser.add_argument("--out", type=Path, required=True, help="the .npz of samples")
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def shuffled_batches(n: int, batch_size: int) -> tuple[Tensor, ...]:
    """The indices of one epoch in batches of one size; the rest that fills none is left out."""
    return torch.randperm(n).split(batch_size)[: n // batch_size]


def flipped_at_random(x: Tensor) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


@torch.no_grad()
def write_samples(path: Path, num_images: int, num_classes: int, draw: Callable[[Tensor], Tensor]) -> None:
    """draw(y [CHUNK]) -> x [CHUNK,3,H,W] in [0,1], for as many images of each class; whole chunks only, so that a
    smaller set is the beginning of a larger one to the bit."""
    labels = torch.arange(-(-num_images // CHUNK) * CHUNK) % num_classes
    samples = torch.cat([to_u8(draw(part)) for part in labels.split(CHUNK)])
    write_npz(path, samples[:num_images], labels[:num_images].numpy())
