"""A discriminator for a generator that has none: another GAN's, and a corrector that tells the two generators apart.

Ansari et al. 2021, arXiv:2012.00780: D is the log-odds of real images against those of its own generator, C that of
these against the images of the generator to be improved; D + C is then that of real images against the latter.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from benchmarks.generators.layers import bake_spectral_norms
from benchmarks.generators.model import adam
from robust_models.runtime.seeds import STEP, generator

BATCH = 64  # images of each generator in a step
LR, BETAS = 2e-4, (0.5, 0.999)


class Corrected(nn.Module):
    """x in the range `pixels` (and y) -> D + C [N]; both take images in [-1,1], and classes where they have some."""

    networks = 2  # that an image goes through

    def __init__(self, discriminator: Any, corrector: nn.Module, pixels: str) -> None:
        super().__init__()
        self.discriminator, self.corrector, self.pixels = discriminator, corrector, pixels

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = _symmetric(x, self.pixels)
        classes = [] if self.discriminator.num_classes is None else [y]
        return self.discriminator(x, *classes) + self.corrector(x, *classes)


def train_corrector(corrector: Any, own: Any, other: Any, steps: int, seed: int) -> None:
    """Teaches the corrector to tell images of the discriminator's own generator (high) from the other's (low).

    The corrector is of the discriminator's architecture and ends in evaluation mode, its spectral norms computed. What
    it learns follows from the seed. Both generators are asked for the same classes where they have any.
    """
    optimizer = adam(corrector, LR, BETAS)
    device = next(corrector.parameters()).device
    for step in trange(steps, desc="corrector", unit="step"):
        random = generator("cpu", seed, STEP, step)
        y = torch.randint(count, (BATCH,), generator=random).to(device) if (count := _classes(own, other)) else None
        with torch.no_grad():
            x = torch.cat([_images(one, y, random, device) for one in (own, other)])
        classes = [] if corrector.num_classes is None or y is None else [y.repeat(2)]
        higher, lower = corrector(x, *classes).chunk(2)
        loss = F.softplus(-higher).mean() + F.softplus(lower).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bake_spectral_norms(corrector)
    for parameter in corrector.parameters():
        parameter.data = parameter.data.half().float()  # as it is kept
    corrector.eval().requires_grad_(False)


def _classes(*generators: Any) -> int | None:
    return next((one.num_classes for one in generators if one.num_classes is not None), None)


def _images(made_by: Any, y: Tensor | None, random: torch.Generator, device: torch.device) -> Tensor:
    """[BATCH,3,H,W] in [-1,1]."""
    z = torch.randn(BATCH, *made_by.z_shape, generator=random).to(device)
    classes = [] if made_by.num_classes is None else [y]
    return _symmetric(made_by(z, *classes), made_by.pixels)


def _symmetric(x: Tensor, pixels: str) -> Tensor:
    return x if pixels == "symmetric" else 2 * x - 1
