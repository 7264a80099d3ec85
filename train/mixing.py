"""CutMix and Mixup for a whole batch on its device, from one seeded generator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import AugmentConfig


def mix(
    x: Tensor, y: Tensor, num_classes: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x [N,3,H,W] and y [N] -> mixed images and the classes' shares in each, [N,classes]; (x, y) where mix is "none".

    A share `mix_share` of the images is mixed, each with another image of the batch and in a proportion of its own,
    uniform in [0,1] as both papers have it for CIFAR-10.
    """
    if config.mix == "none":
        return x, y
    n = len(x)
    partner = torch.randperm(n, generator=generator, device=x.device)
    chosen = torch.rand(n, generator=generator, device=x.device) < config.mix_share
    kept = torch.where(chosen, torch.rand(n, generator=generator, device=x.device), 1.0)
    if config.mix == "mixup":
        x = torch.lerp(x[partner], x, kept.view(-1, 1, 1, 1))
    else:
        x, kept = _paste(x, x[partner], kept, generator)
    shares = F.one_hot(y, num_classes).to(x.dtype)
    return x, torch.lerp(shares[partner], shares, kept.unsqueeze(1))


def _paste(x: Tensor, other: Tensor, kept: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A box of the area 1 - kept of `other` over x, and the share of x that is left. Yun et al. 2019, arXiv:1905.04899.

    The box is centred anywhere and cut off at the border, hence what is left can be more than `kept`.
    """
    n, _, height, width = x.shape
    side = (1 - kept).sqrt()
    centre = torch.rand(2, n, generator=generator, device=x.device)
    rows = _inside(centre[0] * height, side * height, height).unsqueeze(2)
    columns = _inside(centre[1] * width, side * width, width).unsqueeze(1)
    box = rows & columns
    return torch.where(box.unsqueeze(1), other, x), 1 - box.float().mean((1, 2))


def _inside(centre: Tensor, size: Tensor, length: int) -> Tensor:
    """[N,length]: which pixels have their middle within size / 2 of the centre."""
    middles = torch.arange(length, device=centre.device) + 0.5
    return (middles - centre.unsqueeze(1)).abs() < size.unsqueeze(1) / 2
