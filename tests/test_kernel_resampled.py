"""Kernel distances of parts of a set: the published estimate on the whole, brute force on parts, honest differences."""

import numpy as np
import pytest
import torch

from refine.auto_judging import compared
from robust_models import UserError
from robust_models.metrics import distance_interval, kernel_distance
from robust_models.metrics.kernel_resampled import (
    KernelReference,
    KernelResampler,
    measure_of,
    reference_for,
    resampler_for,
)


def draw(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_of_the_whole_set_it_is_the_published_estimate(offset):
    x, y = draw(60, 5, 0) + offset, draw(60, 5, 1)
    assert KernelReference(y).distance(x) == pytest.approx(kernel_distance(x, y)[0], rel=1e-10)


def test_of_a_part_it_is_brute_force_over_pairs_of_different_images():
    x, y = draw(7, 3, 0).numpy(), draw(5, 3, 1).numpy()

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    drawn = [0, 0, 2, 3, 3, 3, 6]
    pairs = [kernel(x[i], x[j]) for i in drawn for j in drawn if i != j]
    real = [kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j]
    across = [kernel(x[i], y[j]) for i in drawn for j in range(5)]
    expected = np.mean(pairs) + np.mean(real) - 2 * np.mean(across)
    counts = np.bincount(drawn, minlength=7)
    assert KernelResampler(x, KernelReference(y)).distance(counts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "dim", "measure"), [(10, 40, 12, "kid"), (40, 11, 12, "kid"), (40, 40, 12, "frechet")]
)
def test_few_images_are_compared_by_kernel(n, m, dim, measure):
    reference = reference_for(draw(m, dim, 0), n)
    assert measure_of(reference) == measure
    rows = draw(n, dim, 1)
    assert resampler_for(rows, reference).distance(np.ones(n, dtype=np.int64)) == pytest.approx(
        reference_distance(rows, reference)
    )


def reference_distance(rows, reference):
    from robust_models.metrics import FrechetStatistics

    return reference.distance(rows if measure_of(reference) == "kid" else FrechetStatistics.of(rows))


def test_an_interval_holds_the_expected_distance_about_as_often_as_it_says():
    reference = KernelReference(draw(100, 64, 0))
    truth = np.mean([reference.distance(draw(40, 64, seed) + 0.1) for seed in range(200, 400)])
    held = 0
    for seed in range(60):
        low, high = distance_interval(KernelResampler(draw(40, 64, seed + 1) + 0.1, reference), 60)
        held += low <= truth <= high
    assert 52 <= held  # 57 are 95 %


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="at least 2 images in each set, got 1"):
        KernelReference(draw(1, 4, 0))
    with pytest.raises(UserError, match="at least 2 images in each set, got 1"):
        KernelResampler(draw(1, 4, 0), KernelReference(draw(5, 4, 0)))
    with pytest.raises(UserError, match="an interval of a distance needs at least 4 images, got 3"):
        distance_interval(KernelResampler(draw(3, 4, 0), KernelReference(draw(5, 4, 0))), 50)
    with pytest.raises(UserError, match="3 features cannot be compared with 4"):
        KernelResampler(draw(5, 3, 0), KernelReference(draw(5, 4, 0)))


def test_noise_is_called_a_gain_as_seldom_as_it_should_be_in_more_features_than_images():
    reference = draw(200, 64, 0)
    gains = losses = 0
    for seed in range(60):
        before = draw(40, 64, seed + 1)
        after = 0.9 * before + (1 - 0.9**2) ** 0.5 * draw(40, 64, 1000 + seed)  # of the same distribution
        verdict = compared(before, after, reference)
        assert verdict.measure == "kid"
        gains, losses = gains + verdict.is_gain, losses + verdict.is_loss
    assert gains + losses <= 8  # 5 % of 60, and five more
    assert compared(before + 1, before, reference).is_gain
