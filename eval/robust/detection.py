"""Out-of-distribution detection: how well a classifier's outputs tell its own kind of images from others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtri
from scipy.stats import rankdata
from torch import Tensor

Score = Callable[[Tensor], Tensor]

# Logits [N,classes] to [N]: the larger, the more an image counts as one of the classifier's own.
SCORES: dict[str, Score] = {
    "max_softmax": lambda logits: logits.double().log_softmax(1).amax(1),  # Hendrycks and Gimpel 2017, arXiv:1610.02136
    "log_sum_exp": lambda logits: logits.double().logsumexp(1),  # less the free energy: Liu et al. 2020, 2010.03759
}


@dataclass(frozen=True)
class AUROC:
    """Probability that an image of the first set scores above one of the second (half for a tie), and its interval."""

    value: float
    interval: tuple[float, float]  # 95 %


def detection(inside: Tensor, outside: Tensor) -> dict[str, AUROC]:
    """The AUROC by each score of SCORES: logits [N,classes] of the classifier's own images, [M,classes] of others."""
    return {name: auroc(score(inside).numpy(), score(outside).numpy()) for name, score in SCORES.items()}


def auroc(inside: np.ndarray, outside: np.ndarray, confidence: float = 0.95) -> AUROC:
    """The area under the ROC curve of scores [N] and [M] float64, with an interval of the error that sampling makes.

    The variance is DeLong's (1988), the interval symmetric in the log-odds of the area, so that it stays in [0,1].
    Where the sets do not overlap the variance is 0: the end of the interval is then that of min(N, M) pairs without a
    share in any image, all of them won (Clopper and Pearson 1934).
    """
    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    # How much of the other set each score stands above: mid-ranks among all less those among its own.
    above = (ranks[:n] - rankdata(inside)) / m
    below = 1 - (ranks[n:] - rankdata(outside)) / n
    value = float(ranks[:n].sum() - n * (n + 1) / 2) / (n * m)  # exact, as sums of halves are
    if value in (0.0, 1.0):
        reach = 1 - (0.5 - confidence / 2) ** (1 / min(n, m))
        return AUROC(value, (1 - reach, 1.0) if value == 1 else (0.0, reach))
    variance = _variance(above) / n + _variance(below) / m
    half = float(ndtri(0.5 + confidence / 2)) * variance**0.5 / (value * (1 - value))
    centre = logit(value)
    return AUROC(value, (float(expit(centre - half)), float(expit(centre + half))))


def _variance(values: np.ndarray) -> float:
    """Unbiased; of a single value, the largest that one in [0,1] can have."""
    return float(values.var(ddof=1)) if len(values) > 1 else 0.25
