"""DiffAugment: differentiable changes that a discriminator sees of real and made images alike.

Zhao et al. 2020, arXiv:2006.10738.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.125  # of the image's side, at most
HOLE = 0.5  # of the image's side


def translate(x: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its side, with zeros behind it."""
    n, _, height, width = x.shape
    reach_y, reach_x = round(height * SHIFT), round(width * SHIFT)
    by_y = torch.randint(-reach_y, reach_y + 1, (n, 1, 1), device=x.device)
    by_x = torch.randint(-reach_x, reach_x + 1, (n, 1, 1), device=x.device)
    rows = torch.arange(height, device=x.device).view(1, -1, 1) + by_y + reach_y
    columns = torch.arange(width, device=x.device).view(1, 1, -1) + by_x + reach_x
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y)).permute(0, 2, 3, 1)
    which = torch.arange(n, device=x.device).view(-1, 1, 1)
    return padded[which, rows, columns].permute(0, 3, 1, 2)


def cut_out(x: Tensor) -> Tensor:
    """Each image with a square of half its side set to zero; the square's centre is anywhere in the image."""
    n, _, height, width = x.shape
    inside = []
    for side in (height, width):
        hole = round(side * HOLE)
        first = torch.randint(0, side + (1 - hole % 2), (n, 1), device=x.device) - hole // 2
        places = torch.arange(side, device=x.device).view(1, -1)
        inside.append((places >= first) & (places < first + hole))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, 0.0)


def color(x: Tensor) -> Tensor:
    """Each image with its brightness changed by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device)
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation_cutout(x: Tensor) -> Tensor:
    """The policy of the paper's CIFAR-10 runs."""
    return cut_out(translate(x))
