"""Random crop, flip, colour jitter, rotation and noise for a batch on its device, from one seeded generator."""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.runtime.distributed import Ranks
from train.config import AugmentConfig, TrainConfig
from train.parallel import ALONE, part

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def augment(x: Tensor, config: AugmentConfig, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """x [N,3,H,W] in [0,1] -> the same shape and range. Every image draws its own transformation.

    Each rank draws for the whole batch and takes its part: an image is treated alike by however many ranks there are.
    """
    if config.crop_padding:
        x = random_crop(x, config.crop_padding, generator, ranks)
    if config.flip:
        x = torch.where(_uniform(x, generator, ranks) < 0.5, x.flip(3), x)
    if config.jitter:
        x = jitter(x, config.jitter, generator, ranks)
    if config.rotation:
        x = rotate(x, config.rotation, generator, ranks)
    return x


class Noise(NamedTuple):
    """What is added to the images of a batch."""

    values: Tensor  # [N,draws,C,H,W]
    sigma: Tensor | None = None  # [N], its standard deviations where the network is told them, pixels in [0,1]


def noise_for(
    config: TrainConfig, x: Tensor, count: int, generator: torch.Generator, ranks: Ranks = ALONE
) -> Noise | None:
    """Gaussian noise for these images x, of `count` in the whole batch; None where none is wanted."""
    smoothing = config.smoothing
    if not (smoothing.sigma or config.noised):
        return None
    shape = (count, 1 if config.noised else smoothing.draws, *x.shape[1:])
    values = part(torch.randn(shape, generator=generator, device=x.device), ranks)
    if not config.noised:
        return Noise(smoothing.sigma * values)
    levels = diffusion_noise(x.device)
    sigma = levels[part(torch.randint(len(levels), (count,), generator=generator, device=x.device), ranks)]
    return Noise(sigma.view(-1, 1, 1, 1, 1) * values, sigma)


@functools.cache  # every step asks, and a copy to the device would make it wait
def diffusion_noise(device: torch.device) -> Tensor:
    """Of each of the 1,000 steps of DDPM (Ho et al. 2020, arXiv:2006.11239), beside an image of its own scale, [1000].

    Diffusion models have pixels in [-1,1]; in [0,1], as here, the noise is half as large.
    """
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    return (((1 - kept) / kept).sqrt() / 2).float().to(device)


def under(noise: Noise | None, model: nn.Module) -> nn.Module:
    """The model as it sees the images that the noise was drawn for."""
    if noise is None:
        return model
    from robust_models.smoothing import UnderNoise

    if noise.sigma is None:
        return UnderNoise(model, noise.values)
    from robust_models.architectures.noised import AtNoise

    return UnderNoise(AtNoise(model, noise.sigma), noise.values)


def random_crop(x: Tensor, padding: int, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Each image moved by -padding..padding pixels in both directions, zeros moving in."""
    n, _, height, width = x.shape
    shape = (2, n * ranks.world, 1)
    offset = part(torch.randint(0, 2 * padding + 1, shape, generator=generator, device=x.device), ranks, dim=1)
    rows = offset[0] + torch.arange(height, device=x.device)
    columns = offset[1] + torch.arange(width, device=x.device)
    padded = F.pad(x, (padding,) * 4)
    samples = torch.arange(n, device=x.device).view(-1, 1, 1)
    # Advanced indices around the channel slice put it last: [N,H,W,C], which is channels_last already.
    return padded[samples, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def jitter(x: Tensor, strength: float, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Brightness, contrast and saturation, each by a factor from [1 - strength, 1 + strength]."""
    brightness, contrast, saturation = (1 + strength * (2 * _uniform(x, generator, ranks) - 1) for _ in range(3))
    x = (x * brightness).clamp(0, 1)
    grey_mean = _grey(x).mean(dim=(2, 3), keepdim=True)
    x = torch.lerp(grey_mean, x, contrast).clamp(0, 1)
    return torch.lerp(_grey(x), x, saturation).clamp(0, 1)


def rotate(x: Tensor, degrees: float, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Each image turned by an angle from [-degrees, degrees], bilinear, zeros outside."""
    angle = (2 * _uniform(x, generator, ranks).flatten() - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor(GREY, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _uniform(x: Tensor, generator: torch.Generator, ranks: Ranks) -> Tensor:
    return part(torch.rand(len(x) * ranks.world, 1, 1, 1, generator=generator, device=x.device), ranks)
