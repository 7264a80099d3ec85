"""Intervals of precision, recall, density and coverage: about the scores themselves, and they hold."""

import numpy as np
import pytest
import torch
from torch import Tensor

from robust_models.metrics import precision_recall
from robust_models.metrics.density_coverage import density_coverage
from robust_models.metrics.neighbour_intervals import (
    _centred,
    _recall,
    density_coverage_intervals,
    precision_recall_intervals,
)

DIM = 6


def drawn(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)) + shift


REAL = drawn(150, 0)


def scores(x: Tensor) -> np.ndarray:
    return np.array([*precision_recall(x, REAL), *density_coverage(x, REAL)])


def intervals(x: Tensor) -> np.ndarray:
    return np.array([*precision_recall_intervals(x, REAL), *density_coverage_intervals(x, REAL)])


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_intervals_hold_the_scores_of_other_sets_of_as_many_images(shift):
    truth = np.mean([scores(drawn(80, seed, shift)) for seed in range(1000, 1300)], axis=0)
    found = np.stack([intervals(drawn(80, seed, shift)) for seed in range(1, 101)])
    held = ((found[:, :, 0] <= truth) & (truth <= found[:, :, 1])).mean(axis=0)
    assert (held >= 0.88).all(), held  # 95 of 100, less three standard errors


def test_intervals_are_about_the_scores_and_narrow_with_n():
    widths = []
    for n in (50, 800):
        x = drawn(n, 1)
        low, high = intervals(x).T
        assert ((low <= scores(x)) & (scores(x) <= high)).all()
        widths.append(high - low)
    assert (widths[1] < widths[0]).all()


def test_recall_of_what_is_kept_is_the_recall_of_that_part():
    x = drawn(60, 2)
    of_kept = _recall(*_centred(x, REAL), 3)
    for seed in range(5):
        kept = np.random.default_rng(seed).random(60) < 0.8
        assert of_kept(kept) == pytest.approx(precision_recall(x[kept], REAL)[1])


def test_copies_are_one_anothers_neighbours():
    x = torch.cat([drawn(20, 3)] * 5)
    assert precision_recall(x, REAL)[1] == _recall(*_centred(x, REAL), 3)(np.ones(100, dtype=bool))


def test_intervals_are_seeded_and_stay_within_what_a_share_can_be():
    x = drawn(60, 4)
    assert (intervals(x) == intervals(x)).all()
    far = intervals(drawn(60, 4, shift=100.0))
    assert far[0] == pytest.approx([0, 0.0602], abs=1e-3)  # Wilson's of 0 out of 60
    assert far[1:].tolist() == [[0, 0]] * 3
