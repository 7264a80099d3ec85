"""eps chosen by measurement, on made-up sets whose best eps is known."""

import pytest
import torch

from refine.auto_eps import format_curve, search
from refine.auto_judging import compared
from refine.selection import halves
from robust_models import UserError

REFERENCE = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))


def moved_to(best: float):
    """Refined sets whose mean meets the reference's at eps = best, and is off by the difference elsewhere."""
    tried: list[float] = []

    def refine_at(eps: float) -> torch.Tensor:
        tried.append(eps)
        return IMAGES + (eps - best)

    return refine_at, tried


def judge(x):
    return x, 5 * x


@pytest.mark.parametrize("best", [0.5, 2.0, 3.0, 6.0])
def test_the_minimum_is_found_and_the_climb_ends_behind_it(best):
    refine_at, tried = moved_to(best)
    curve = search(refine_at, judge, REFERENCE, norm="l2")
    assert curve.best.eps == best
    assert max(tried) <= 8 * best
    assert len(tried) == len(set(tried))  # no eps is refined twice
    eps = [point.eps for point in curve.points]
    assert eps == sorted(eps)
    assert eps[0] == 0
    low, high = curve.plausible
    assert low <= best <= high
    assert sum(point.chosen_in for point in curve.points) == pytest.approx(1)
    for point in curve.points:
        assert point.interval[0] <= point.distance <= point.interval[1]


def test_images_that_are_best_untouched_are_left_alone():
    curve = search(lambda eps: IMAGES + 3 * eps, judge, REFERENCE, norm="l2")
    assert curve.best.eps == 0
    assert max(point.eps for point in curve.points) == 0.5


def test_linf_starts_at_one_grey_level():
    refine_at, tried = moved_to(0.0)
    search(refine_at, judge, REFERENCE, norm="linf")
    assert min(eps for eps in tried if eps) == pytest.approx(0.5 / 255)  # the gap beside 0 is halved
    with pytest.raises(UserError, match=r"eps: auto knows where to begin for l2, linf; give a number for norm=l1"):
        search(refine_at, judge, REFERENCE, norm="l1")


def test_a_noisy_curve_has_a_wide_range_of_plausible_eps():
    flat = search(lambda eps: IMAGES[:20] + 1e-3 * eps, judge, REFERENCE, norm="l2")
    steep = search(moved_to(2.0)[0], judge, REFERENCE, norm="l2")
    assert flat.plausible[1] - flat.plausible[0] > 0
    assert steep.plausible == (2.0, 2.0)


@pytest.mark.parametrize(("n", "count"), [(10, 4), (10, 100), (5000, 2000), (4, 2)])
def test_the_choosing_and_the_judging_part_share_nothing(n, count):
    chosen, rest = halves(n, count)
    assert len(chosen) == min(count, n // 2)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(n))


def test_the_table_shows_every_eps_and_marks_the_best():
    curve = search(moved_to(2.0)[0], lambda x: (x, None), REFERENCE, norm="l2")
    table = format_curve(curve)
    assert table.count("\n") == len(curve.points) + 1
    assert [line.split()[0] for line in table.splitlines() if line.endswith("<")] == ["2"]
    assert table.endswith("eps 2 (from 2 to 2 in 95 % of the resamples)")


@pytest.mark.parametrize(("n", "dim"), [(200, 8), (60, 40), (40, 60), (300, 2)])
def test_the_verdict_finds_a_gain_where_there_is_one_and_none_where_there_is_none(n, dim):
    draws = torch.Generator().manual_seed(n)
    reference = torch.randn(1000, dim, generator=draws)
    before = 1.0 + torch.randn(n, dim, generator=draws)
    better = compared(before, before - 0.5, reference)
    assert better.is_gain
    assert better.distance_after < better.distance_before
    worse = compared(before, before + 0.5, reference)
    assert not worse.is_gain
    assert worse.difference_interval[0] > 0
    for verdict in (better, worse):
        low, high = verdict.difference_interval
        assert low < verdict.distance_after - verdict.distance_before < high
    assert compared(before, before, reference).difference_interval == (0, 0)


def test_noise_is_called_a_gain_as_seldom_as_it_should_be():
    reference = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    gains = 0
    for seed in range(40):
        draws = torch.Generator().manual_seed(seed + 1)
        before = torch.randn(100, 4, generator=draws)
        after = 0.95 * before + (1 - 0.95**2) ** 0.5 * torch.randn(100, 4, generator=draws)  # of the same distribution
        gains += compared(before, after, reference).is_gain
    assert gains <= 4  # 2.5 % of 40, and three more
