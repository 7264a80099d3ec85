"""Discriminator optimal transport (Tanaka 2019, arXiv:1910.06832): noise or pixels go to where d is higher, nearby.

Gradient descent on -d(z) / k + ||z - z0 + 0.001||, where z0 is the start and k the steepest slope of d between random
pairs, of each class. The number keeps the gradient finite at the start. Steps of noise are tangential, as 128 normal
numbers lie close to a sphere: the radial part is taken out by z (g.z) / ||z||^2. The paper's code divides by 11.31 in
place of ||z||^2, which is 128 or so.
"""

import torch
from torch import Tensor

from benchmarks.comparison.latent_gan import Generators, LatentGan, Rival, of_class

SHIFT = 1e-3


class OptimalTransport(Rival):
    def __init__(self, gan: LatentGan, slopes: Tensor, steps: int = 100, step_size: float = 0.01) -> None:
        """slopes: k of each class, or of one where there are none."""
        super().__init__(gan)
        self.slopes, self.steps, self.step_size = slopes, steps, step_size

    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        start = z = self.gan.start(generators, y)
        k = of_class(self.slopes, y, len(z)).view(-1, *[1] * (z.ndim - 1))
        for _ in range(self.steps):
            _, gradient = self.gan.gradient(z, y)
            away = z - start + SHIFT
            descent = away / _norm(away) - gradient / k
            z = z - self.step_size * (descent if self.gan.in_pixels else tangential(descent, z))
        return z


def tangential(g: Tensor, z: Tensor) -> Tensor:
    """g [n,...] without its part along z."""
    return g - z * (g * z).flatten(1).sum(1).view(-1, *[1] * (z.ndim - 1)) / _norm(z).square()


def steepest_slopes(gan: LatentGan, pairs: int, seed: int) -> Tensor:
    """The largest |d(z1) - d(z2)| / ||z1 - z2|| over so many random pairs, of each class (or of all)."""
    found = []
    for c in range(gan.num_classes or 1):
        y = None if gan.num_classes is None else torch.full((2 * pairs,), c)
        random = torch.Generator().manual_seed(seed + c)
        z = gan.start([random] * 2 * pairs, y)
        rise = gan.logits(z, y).view(2, -1).diff(dim=0).abs()[0]
        found.append((rise / _norm(z[:pairs] - z[pairs:]).flatten()).max())
    return torch.stack(found)


def _norm(z: Tensor) -> Tensor:
    return z.flatten(1).norm(dim=1).view(-1, *[1] * (z.ndim - 1))
