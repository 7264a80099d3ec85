"""The intervals of single scores: that they cover, and why."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from robust_models import UserError
from robust_models.metrics import (
    FrechetReference,
    FrechetStatistics,
    Resampler,
    ScoreStatistics,
    distance_interval,
    half_split_interval,
    half_splits,
    inception_score,
)
from robust_models.metrics.inception_score import shuffled_splits
from robust_models.metrics.kernel import kernel_interval
from robust_models.metrics.kernel_resampled import KernelReference, KernelResampler


def test_half_splits_are_halves_and_seeded():
    first = half_splits(9, 60, seed=3)
    assert first.shape == (60, 9)
    assert (first.sum(axis=1) == 4).all()
    assert first.any(axis=0).all()
    assert (first == half_splits(9, 60, seed=3)).all()
    assert (first != half_splits(9, 60, seed=4)).any()


def test_the_interval_of_a_mean_is_the_textbooks():
    x = np.random.default_rng(0).standard_normal(8)
    every = [np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)]
    first, second = (np.array([x[half == side].mean() for half in every]) for side in (True, False))
    low, high = half_split_interval(x.mean(), first, second)
    assert (high + low) / 2 == pytest.approx(x.mean())
    assert (high - low) / 2 == pytest.approx(scipy.stats.t.ppf(0.975, len(every)) * x.std(ddof=1) / 8**0.5)


def test_terms_of_pairs_are_counted_once():
    """Of the squared mean of normal numbers about 0, which is pairs alone, the variance is 2 / n^2."""
    rng, n = np.random.default_rng(1), 40
    variances = []
    for _ in range(300):
        x, halves = rng.standard_normal(n), half_splits(n, 60, seed=int(rng.integers(1 << 30)))
        first, second = (np.array([x[half].mean() ** 2 for half in side]) for side in (halves, ~halves))
        variances.append((((first - second) / 2) ** 2).mean() - ((first + second) / 2).var(ddof=1))
    assert np.mean(variances) == pytest.approx(2 / n**2, rel=0.3)


def test_equal_halves_leave_no_room():
    assert half_split_interval(2.0, np.full(60, 3.0), np.full(60, 3.0)) == (2.0, 2.0)


def against_normal(dim: int) -> FrechetReference:
    return FrechetReference(FrechetStatistics.of(np.random.default_rng(7).standard_normal((4000, dim))))


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("dim", [4, 48])
def test_intervals_cover_the_distance_at_this_number_of_images(dim, shift):
    rng, reference, n = np.random.default_rng(2), against_normal(dim), 40

    def drawn() -> Resampler:
        return Resampler(rng.standard_normal((n, dim)) + shift * (np.arange(dim) < 4), reference)

    whole = np.ones(n, dtype=np.int64)
    truth = np.mean([drawn().distance(whole) for _ in range(600)])
    found = [distance_interval(drawn(), 60, seed=seed) for seed in range(100)]
    assert 0.88 <= np.mean([low <= truth <= high for low, high in found]) <= 1
    widths = np.mean([high - low for low, high in found])
    spread = np.std([drawn().distance(whole) for _ in range(300)])
    assert widths < 1.45 * 2 * 1.96 * spread  # a bootstrap's are 1.7 to 3 times


@pytest.mark.parametrize(("n", "dim"), [(60, 5), (12, 30)])
def test_the_influence_of_an_image_is_the_derivative_by_its_weight(n, dim):
    rows = np.random.default_rng(3).standard_normal((n, dim)) + 0.4
    resampler = Resampler(torch.from_numpy(rows), against_normal(dim))
    often = np.full(n, 10**6)
    steps = often + 1000 * np.eye(n, dtype=np.int64)
    change = np.array([resampler.distance(counts) - resampler.distance(often) for counts in steps]) * 1000
    influence = resampler.influence()
    assert change * n == pytest.approx(influence - influence.mean(), abs=0.1 * influence.std())


def test_three_images_have_no_halves_with_a_covariance():
    with pytest.raises(UserError, match="an interval of a distance needs at least 4 images, got 3"):
        distance_interval(Resampler(np.eye(3), against_normal(3)), 50)


@pytest.mark.parametrize(("n", "m"), [(30, 50), (31, 20)])
def test_the_kernel_distances_interval_is_that_of_its_halves(n, m):
    x, y = (torch.from_numpy(np.random.default_rng(seed).standard_normal((size, 5))) for seed, size in ((4, n), (5, m)))
    reference = KernelReference(y)
    whole = reference.distance(x)
    expected = distance_interval(KernelResampler(x, reference), 60, seed=2)
    assert kernel_interval(whole, x, y, 60, seed=2) == pytest.approx(expected)
    shifted = kernel_interval(whole + 1, x, y, 60, seed=2)
    assert shifted == pytest.approx((expected[0] + 1, expected[1] + 1))


def test_an_inception_scores_interval_is_students_over_its_splits():
    rng = np.random.default_rng(6)
    logits = torch.from_numpy(3 * rng.standard_normal((200, 10)))
    statistics = ScoreStatistics.of(shuffled_splits(200), 10)
    statistics.update(logits, 0)
    scores = [inception_score(logits[shuffled_splits(200) == split]) for split in range(10)]
    assert statistics.interval() == pytest.approx(
        scipy.stats.t.interval(0.95, 9, np.mean(scores), scipy.stats.sem(scores))
    )
    one = ScoreStatistics.of(np.zeros(200, dtype=np.int64), 10)
    one.update(logits, 0)
    assert one.interval() is None
