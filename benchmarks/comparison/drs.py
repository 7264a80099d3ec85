"""Discriminator rejection sampling (Azadi et al. 2019, arXiv:1810.06758): samples are kept by their density ratio.

With M the highest logit, exp(d - M) is the probability of rejection sampling. The paper shifts its log-odds by gamma:
F = d - M - log(1 - exp(d - M - eps)) - gamma, and a sample is kept with probability sigmoid(F).

M and gamma are of the burn-in's samples and then stay, so that image k depends on nothing but its own noise; a logit
above M counts as M. The paper's code raises M then, for all samples that follow.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.comparison.latent_gan import Generators, LatentGan, Rival, normal, of_class, picked, uniform

EPS = 1e-6
MOST = 1000  # proposals; then the one with the highest logit is taken


@dataclass(frozen=True)
class Bounds:
    """Of each class, or of one where there are none."""

    highest: Tensor  # M
    gamma: Tensor


class RejectionSampling(Rival):
    def __init__(self, gan: LatentGan, bounds: Bounds) -> None:
        super().__init__(gan)
        self.bounds = bounds

    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        n = len(generators)
        chosen, best = torch.zeros(n, *self.gan.z_shape), torch.full((n,), -torch.inf)
        left = torch.arange(n)
        for _ in range(MOST):
            drawing = [generators[i] for i in left.tolist()]
            z, threshold, classes = normal(drawing, self.gan.z_shape), uniform(drawing), picked(y, left)
            d = self.gan.logits(z, classes)
            odds = log_odds(
                d, of_class(self.bounds.highest, classes, len(d)), of_class(self.bounds.gamma, classes, len(d))
            )
            kept = threshold < odds.sigmoid()
            taken = kept | (d > best[left])
            chosen[left[taken]], best[left[taken]] = z[taken], d[taken]
            left = left[~kept]
            if not len(left):
                break
        return chosen


def log_odds(d: Tensor, highest: Tensor, gamma: Tensor) -> Tensor:
    """F of logits d."""
    below = (d - highest).clamp(max=0)
    return below - (-torch.expm1(below - EPS)).log() - gamma


def bounds_of(d: Tensor, y: Tensor | None, percentile: float) -> Bounds:
    """M, and gamma as that percentile of F without gamma, from the logits d [N] of samples of classes y [N]."""
    parts = [d] if y is None else [d[y == c] for c in range(int(y.max()) + 1)]
    odds = [log_odds(part, part.max(), torch.zeros(())) for part in parts]
    gamma = [one.quantile(percentile / 100) for one in odds]
    return Bounds(torch.stack([part.max() for part in parts]), torch.stack(gamma))
