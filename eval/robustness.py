"""Robust accuracy: the share of images classified rightly, and still so under every attempt of an attack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri
from torch import Tensor, nn
from tqdm import tqdm

from robust_models import to_float
from robust_models.attacks import frozen_eval

Attempt = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (model, x, y, index of each image) -> x_adv


@dataclass(frozen=True)
class Robustness:
    """Per image, in the order of the set: bool [N] on the CPU."""

    correct: Tensor  # as it is
    robust: Tensor  # and under every attempt: the worst case over restarts


def measure_robustness(
    model: nn.Module, x_u8: Tensor, y: Tensor, attempts: Sequence[Attempt], *, batch_size: int = 250
) -> Robustness:
    """Clean and worst-case correctness of model (pixels [0,1] -> logits) on x_u8 uint8 [N,3,H,W], y int64 [N].

    Only the images that every earlier attempt left rightly classified meet the next one. Runs in eval mode on the
    device of the model's parameters, which are left as found; progress on stderr.
    """
    with frozen_eval(model):
        everything = torch.ones(len(y), dtype=torch.bool)
        correct = robust = _survivors(model, x_u8, y, everything, None, batch_size, "clean")
        for number, attempt in enumerate(attempts, 1):
            robust = _survivors(model, x_u8, y, robust, attempt, batch_size, f"attack {number}/{len(attempts)}")
    return Robustness(correct, robust)


def _survivors(
    model: nn.Module, x_u8: Tensor, y: Tensor, alive: Tensor, attempt: Attempt | None, batch_size: int, title: str
) -> Tensor:
    """Those of `alive` [N] that are rightly classified after the attempt (as they are: None)."""
    device = next(model.parameters()).device
    survived = torch.zeros_like(alive)
    index = alive.nonzero().squeeze(1)
    with tqdm(total=len(index), desc=title, unit="img", mininterval=0.5) as bar:
        for part in index.split(batch_size) if len(index) else ():
            x, labels = to_float(x_u8[part].to(device)), y[part].to(device)
            x = x if attempt is None else attempt(model, x, labels, part)
            with torch.no_grad():
                survived[part] = (model(x).argmax(1) == labels).cpu()
            bar.update(len(part))
    return survived


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a fraction: sampling error of N images, not of the attack's randomness.

    Wilson 1927; inside [0,1] and not empty at 0 or n successes, as the normal approximation is.
    """
    z = float(ndtri(0.5 + confidence / 2))
    share = successes / n
    centre = share + z**2 / (2 * n)
    reach = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    scale = 1 + z**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
