"""CERTIFY and PREDICT of Cohen et al. 2019, arXiv:1902.02918, on counts of votes under Gaussian noise.

The smoothed classifier answers with the class that the base classifier is most likely to give for x + N(0, sigma^2 I).
Noise is added to pixels in [0,1], before the normaliser, and is not clipped. A few votes choose the class, fresh ones
bound its probability from below: the same votes for both would break the guarantee.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from robust_models.errors import UserError

ABSTAIN = -1
Draw = Callable[[int], Tensor]  # so many fresh standard normal images [n,3,H,W], on the image's device


@dataclass(frozen=True)
class Certificate:
    """The smoothed classifier gives `guess` everywhere within the L2 radius, at confidence 1 - alpha.

    votes: of the fresh samples, those for the class that the first ones chose. Where too few are, it abstains: guess
    ABSTAIN, radius 0.
    """

    guess: int
    votes: int
    radius: float  # pixels in [0,1]


def certify(
    model: nn.Module, x: Tensor, sigma: float, draw: Draw, *, n0: int, n: int, alpha: float, batch_size: int
) -> Certificate:
    """The certificate of one image x [3,H,W] in [0,1], from n0 samples that choose and n that count."""
    chosen = int(count_votes(model, x, sigma, draw, n0, batch_size).argmax())
    votes = int(count_votes(model, x, sigma, draw, n, batch_size)[chosen])
    radius = radius_of(votes, n, sigma, alpha)
    return Certificate(chosen if radius > 0 else ABSTAIN, votes, radius)


def radius_of(votes: int, n: int, sigma: float, alpha: float) -> float:
    """sigma times the normal quantile of the class's least probability; 0 where that is not above a half."""
    least = lower_bound(votes, n, alpha)
    return float(sigma * stats.norm.ppf(least)) if least > 0.5 else 0.0


def lower_bound(votes: int, n: int, alpha: float) -> float:
    """One-sided 1 - alpha bound of a probability that votes of n have shown. Clopper & Pearson 1934."""
    return float(stats.beta.ppf(alpha, votes, n - votes + 1)) if votes > 0 else 0.0


def predict(votes: np.ndarray, alpha: float) -> int:
    """The smoothed classifier's answer from votes [classes] of one draw; ABSTAIN where the first two may be level."""
    second, first = np.argsort(votes, kind="stable")[-2:]
    test = stats.binomtest(int(votes[first]), int(votes[first] + votes[second]), 0.5)
    return int(first) if test.pvalue <= alpha else ABSTAIN


@torch.no_grad()
def count_votes(model: nn.Module, x: Tensor, sigma: float, draw: Draw, n: int, batch_size: int) -> np.ndarray:
    """How often each class is the answer at x + sigma * noise, of n draws; [classes] int64. The model is in eval mode.

    UserError where an output is not finite.
    """
    votes = 0
    for at in range(0, n, batch_size):
        logits = model(x + sigma * draw(min(batch_size, n - at)))
        if not torch.isfinite(logits).all():
            raise UserError("outputs: NaN or infinite under noise; check the weights and --precision fp32")
        votes = votes + torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    assert isinstance(votes, Tensor)
    return votes.cpu().numpy()


def greatest_radius(n: int, sigma: float, alpha: float) -> float:
    """The largest radius that n samples can certify at all: that of a unanimous vote."""
    return radius_of(n, n, sigma, alpha)
