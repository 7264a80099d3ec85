"""How pixels reach the Inception network: one network, several conventions, and each moves the score.

Every function: uint8 [n,3,H,W] -> float32 [n,3,299,299], about [-1,1].
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 299


def pytorch_fid(x_u8: Tensor) -> Tensor:
    """Bilinear between pixel centres, no antialias; x / 127.5 - 1."""
    x = F.interpolate(x_u8.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def tensorflow(x_u8: Tensor) -> Tensor:
    """TensorFlow 1's bilinear, whose grid begins at the corner (not the centre) of a pixel; (x - 128) / 128.

    Two matrix products, one for each axis: equal to the step by step form to 3e-5 / 255.
    """
    rows, columns = (_tensorflow_weights(size, x_u8.device) for size in x_u8.shape[2:])
    return (rows @ x_u8.float() @ columns.T - 128) / 128


def clean(x_u8: Tensor) -> Tensor:
    """Antialiased bicubic of unrounded values, clipped to [0,255] (Parmar et al. 2022, arXiv:2104.11222)."""
    return (bicubic(x_u8, SIDE) - 128) / 128


def bicubic(x_u8: Tensor, side: int) -> Tensor:
    """uint8 [n,3,H,W] -> float32 [n,3,side,side] in [0,255], as Pillow resizes floats: two matrix products."""
    rows, columns = (_bicubic_weights(size, side, x_u8.device) for size in x_u8.shape[2:])
    return (rows @ (x_u8.float() @ columns.T)).clamp(0, 255)


PROTOCOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "pytorch-fid": pytorch_fid,
    "tf": tensorflow,  # torch-fidelity
    "clean": clean,
    "adm": tensorflow,  # guided-diffusion, whose scores split and draw otherwise
}


def same_pixels(a: str, b: str) -> bool:
    """Whether features under two protocols are the same."""
    return a == b or (a in PROTOCOLS and b in PROTOCOLS and PROTOCOLS[a] is PROTOCOLS[b])


@lru_cache(maxsize=8)
def _tensorflow_weights(size: int, device: torch.device) -> Tensor:
    """[299,size]: row i holds the weights of the two pixels that output i lies between."""
    position = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(size / SIDE, dtype=torch.float32)
    lower = position.long()
    upper = (lower + 1).clamp_max(size - 1)
    weights = torch.zeros(SIDE, size)
    output = torch.arange(SIDE)
    weights.index_put_((output, lower), 1 - (position - lower), accumulate=True)
    weights.index_put_((output, upper), position - lower, accumulate=True)
    return weights.to(device)


@lru_cache(maxsize=8)
def _bicubic_weights(size: int, side: int, device: torch.device) -> Tensor:
    """[side,size]: Keys' cubic (a = -1/2), as wide as an output pixel where that is wider than an input pixel.

    Computed in float64: interpolate(antialias=True) computes them in float32, which costs 3e-3 of 255.
    """
    scale = size / side
    width = max(scale, 1)
    centre = (torch.arange(side, dtype=torch.float64)[:, None] + 0.5) * scale
    first, last = (centre - 2 * width + 0.5).trunc(), (centre + 2 * width + 0.5).trunc()
    pixel = torch.arange(size, dtype=torch.float64)
    t = ((pixel + 0.5 - centre) / width).abs()
    inner, outer = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = torch.where(t < 1, inner, torch.where(t < 2, outer, 0.0))
    weights = torch.where((pixel >= first) & (pixel < last), weights, 0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float().to(device)
