"""Signs that an attack fails where a better one would not: masked gradients, after Athalye et al. 2018 and
Carlini et al. 2019 (arXiv:1802.00420, 1902.06705).

Each check is a few PGD runs on a few images. None proves anything: a warning says that the robust accuracy is likely an
overestimate, silence that these signs are absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.robust.attacks.budget import Attempt
from eval.robust.seeded_pgd import SeededPGD, random_start
from eval.robust.stages import device_of, measure_robustness
from robust_models import NORMS, PGD, input_gradient, to_float
from robust_models.attacks import frozen_eval
from robust_models.threat import NormName, per_sample

MOST_IMAGES = 64
STEPS = 20
STARTS = 5
DRAWS = 10  # of noise for each image
UNDERFLOW = 1e-19  # the square of a smaller number is zero in float32, and with it the length of the gradient
NOTABLE = 0.05  # share of the images, and
LEAST_IMAGES = 2  # below these a difference may be chance


@dataclass(frozen=True)
class Sanity:
    """What the checks found; figures are shares of the n rightly classified images they ran on."""

    n: int
    norm: NormName
    eps: float
    figures: dict[str, float]
    warnings: list[str]


def check_sanity(
    model: nn.Module, x_u8: Tensor, y: Tensor, *, norm: NormName, eps: float, seed: int = 0, batch_size: int = 250
) -> Sanity:
    """The five checks on the first 64 rightly classified images of x_u8 uint8 [N,3,H,W], y int64 [N], at radius eps.

    The model is left as found. With no image rightly classified there is nothing to check, and no warning.
    """
    settings: dict[str, Any] = {"batch_size": batch_size}
    right = measure_robustness(model, x_u8, y, [], **settings).correct.nonzero().squeeze(1)[:MOST_IMAGES]
    x_u8, y, n = x_u8[right], y[right], len(right)
    if n == 0 or eps == 0:
        return Sanity(n, norm, eps, {}, [])

    def survive(*attempts: Attempt) -> int:
        return int(measure_robustness(model, x_u8, y, attempts, **settings).robust.sum())

    huge = everywhere(norm, x_u8[0].numel())
    walk = PGD(eps, 2.5 * eps / STEPS, STEPS, norm=norm, random_start=True)
    runs = [SeededPGD(walk, seed, restart) for restart in range(STARTS)]
    counts = {
        "pgd": survive(runs[0]),
        "restarts": survive(*runs),
        "single_step": survive(SeededPGD(PGD(eps, eps, 1, norm=norm))),
        "noise": survive(*noises(norm, eps, seed)),
        "huge_eps": survive(SeededPGD(PGD(huge, 2.5 * huge / STEPS, STEPS, norm=norm, keep="best"))),
        "zero_gradient": count_zero_gradients(model, x_u8, y, batch_size),
    }
    return Sanity(
        n, norm, eps, {name: count / n for name, count in counts.items()}, _warnings(counts, n, norm, eps, huge)
    )


def everywhere(norm: NormName, num_pixels: int) -> float:
    """A radius at which every image can be made grey, so that no classifier can be right on more than one class."""
    return 0.5 * float(NORMS[norm].length(torch.ones(1, num_pixels)))


def noises(norm: NormName, eps: float, seed: int) -> Sequence[Attempt]:
    """Random images on the surface of the ball (before they are clipped to [0,1])."""

    def noise(draw: int) -> Attempt:
        def attempt(_model: nn.Module, x: Tensor, _y: Tensor, index: Tensor) -> Tensor:
            delta = random_start(x, index, norm=norm, eps=eps, seed=seed, restart=STARTS + draw) - x
            length = NORMS[norm].length(delta).clamp_min(torch.finfo(x.dtype).tiny)
            return (x + delta * per_sample(eps / length, x)).clamp(0, 1)

        return attempt

    return [noise(draw) for draw in range(DRAWS)]


def count_zero_gradients(model: nn.Module, x_u8: Tensor, y: Tensor, batch_size: int) -> int:
    """Images at which the loss's input gradient is zero, or so small that its length is zero in float32."""
    device = device_of(model)
    count = 0
    with frozen_eval(model):
        for x_part, y_part in zip(x_u8.split(batch_size), y.split(batch_size), strict=True):
            gradient = input_gradient(model, to_float(x_part.to(device)), y_part.to(device))
            count += int((gradient.flatten(1).abs().amax(1) < UNDERFLOW).sum())
    return count


def _warnings(counts: dict[str, int], n: int, norm: NormName, eps: float, huge: float) -> list[str]:
    """One sentence with its figures for every sign; counts are images that survive, or have a zero gradient."""
    least = max(LEAST_IMAGES, NOTABLE * n)
    pgd = counts["pgd"]

    def share(name: str) -> str:
        return f"{100 * counts[name] / n:.1f} %"

    found = {
        f"robust accuracy does not reach 0: {share('huge_eps')} survive PGD-{STEPS} at {norm} eps {huge:.3g}, where "
        "every image can become plain grey": counts["huge_eps"] > 0,
        f"random restarts help much: PGD-{STEPS} leaves {share('pgd')} with one start and {share('restarts')} with "
        f"{STARTS}; take more restarts and steps, or autoattack": pgd - counts["restarts"] >= least,
        f"one step is stronger than many: {share('single_step')} survive a single step of length {eps:g}, "
        f"{share('pgd')} survive PGD-{STEPS}": pgd - counts["single_step"] >= least,
        f"gradients vanish: {share('zero_gradient')} of the images have an input gradient that is zero in float32, so "
        "attacks along it stand still": counts["zero_gradient"] >= least,
        f"noise is stronger than PGD: {share('noise')} survive {DRAWS} random images at distance {eps:g}, "
        f"{share('pgd')} survive PGD-{STEPS}": pgd - counts["noise"] >= least,
    }
    return [sentence for sentence, holds in found.items() if holds]
