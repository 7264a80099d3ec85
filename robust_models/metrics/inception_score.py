"""Inception Score: exp of the mean divergence between an image's class distribution and the set's.

Salimans et al. 2016. It is the Inception Score only with the 2015-12-05 Inception's logits taken without the bias; with
a classifier's it is that classifier's score. It rises with confidence and without end: alone it misleads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from robust_models.metrics.half_splits import TAIL

SEED = 2020  # torch-fidelity's shuffle
SPLITS = 10  # torch-fidelity's
LEAST_IMAGES = 2 * SPLITS  # a split of one image has the score 1 whatever it shows
BLOCK = 5000  # images, guided-diffusion's


def inception_score(logits: Tensor) -> float:
    """exp(mean KL(p(y|x) || p(y))) of logits [N,C], computed in float64; from 1 (uniform) to C. arXiv:1606.03498."""
    found = ScoreStatistics.of(np.zeros(len(logits), dtype=np.int64), logits.shape[1])
    found.update(logits, 0)
    return found.score()[0]


def shuffled_splits(n: int, splits: int = SPLITS) -> np.ndarray:
    """The split of each of n images, int64 [n]: torch-fidelity's, seeded, so that a set in class order is mixed."""
    order = np.random.RandomState(SEED).permutation(n)
    split = np.empty(n, dtype=np.int64)
    for i in range(splits):
        split[order[i * n // splits : (i + 1) * n // splits]] = i
    return split


def blocks(n: int) -> np.ndarray:
    """The split of each of n images, int64 [n]: guided-diffusion's, blocks of 5,000 in the set's order."""
    return np.arange(n) // BLOCK


@dataclass
class ScoreStatistics:
    """Float64 sums over the images of each split, mergeable: all that the score needs, however many images."""

    split: np.ndarray  # int64 [N], of every image of the whole set
    n: np.ndarray  # [S], images seen
    negentropy: np.ndarray  # [S], sum over images of sum_c p log p
    probs: np.ndarray  # [S,C], sum of p

    @classmethod
    def of(cls, split: np.ndarray, num_classes: int) -> "ScoreStatistics":
        """Of no images yet."""
        count = int(split.max()) + 1
        return cls(split, np.zeros(count, np.int64), np.zeros(count), np.zeros((count, num_classes)))

    def update(self, logits: Tensor, first: int) -> None:
        """Adds logits [n,C] of images first, first + 1, ... of the set."""
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        split = self.split[first : first + len(logits)]
        np.add.at(self.n, split, 1)
        # p log p is 0 where p is, though log p is -inf there.
        np.add.at(self.negentropy, split, torch.where(p > 0, p * log_p, 0).sum(dim=1).cpu().numpy())
        np.add.at(self.probs, split, p.cpu().numpy())

    def merge(self, other: "ScoreStatistics") -> None:
        """Adds what `other`, of the same set, has seen."""
        self.n = self.n + other.n
        self.negentropy = self.negentropy + other.negentropy
        self.probs = self.probs + other.probs

    def score(self) -> tuple[float, float]:
        """(mean, standard deviation with ddof 0) of the splits' scores."""
        scores = self._scores()
        return float(scores.mean()), float(scores.std())

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the expected score of as many images as a split has, Student's t over the splits' scores.

        None for a single split.
        """
        scores = self._scores()
        if len(scores) < 2:
            return None
        reach = stats.t.ppf(1 - TAIL, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
        return max(1.0, float(scores.mean() - reach)), float(scores.mean() + reach)

    def _scores(self) -> np.ndarray:
        """Of each split."""
        kept = self.n > 0  # fewer images than splits
        marginal = self.probs[kept] / self.n[kept, None]
        entropy = -np.where(marginal > 0, marginal * np.log(marginal.clip(min=np.finfo(float).tiny)), 0).sum(axis=1)
        return np.exp(self.negentropy[kept] / self.n[kept] + entropy)
