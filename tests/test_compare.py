import numpy as np
import pytest

from eval.study.report.compare import SPLITS, Comparison, Difference
from robust_models import UserError
from robust_models.metrics import FrechetReference, FrechetStatistics, Resampler, distance_interval, frechet_distance

N, DIM = 60, 6
RNG = np.random.default_rng(0)
REFERENCE = FrechetStatistics(DIM)
REFERENCE.update(RNG.standard_normal((500, DIM)))
AGAINST = FrechetReference(REFERENCE)
BASE = RNG.standard_normal((N, DIM)) + 0.5
NEARER = BASE * 0.95 - 0.3
NOISY = BASE + 0.05 * RNG.standard_normal((N, DIM))


def compared(seed: int = 0, resamples: int = 100, **versions: np.ndarray) -> Comparison:
    return Comparison(versions.items(), AGAINST, resamples=resamples, seed=seed)


def distance(features: np.ndarray) -> float:
    statistics = FrechetStatistics(DIM)
    statistics.update(features)
    return frechet_distance(statistics, REFERENCE)


def test_distances_and_differences_are_the_plain_ones():
    found = compared(raw=BASE, nearer=NEARER)
    assert found.names == ("raw", "nearer")
    assert found.n == N
    assert found.distance("raw").value == pytest.approx(distance(BASE))
    assert found.difference("nearer", "raw").value == pytest.approx(distance(NEARER) - distance(BASE))


def test_an_interval_is_that_of_the_resampler():
    assert compared(seed=7, raw=BASE).distance("raw").interval == distance_interval(
        Resampler(BASE, AGAINST), SPLITS, seed=7
    )


def test_a_paired_interval_is_that_of_whole_distances_of_the_same_resampled_images():
    rng = np.random.default_rng(3)
    draws = [rng.integers(0, N, N) for _ in range(50)]
    gaps = np.array([distance(NEARER[drawn]) - distance(BASE[drawn]) for drawn in draws])
    gaps += distance(NEARER) - distance(BASE) - gaps.mean()
    found = compared(seed=3, resamples=50, raw=BASE, nearer=NEARER).difference("nearer", "raw")
    assert found.interval == pytest.approx(tuple(np.quantile(gaps, (0.025, 0.975))))


def test_a_clear_shift_is_significant_and_has_its_sign():
    found = compared(raw=BASE, nearer=NEARER)
    there, back = found.difference("nearer", "raw"), found.difference("raw", "nearer")
    assert there.is_lower
    assert there.is_significant
    assert not there.is_higher
    assert back.is_higher
    assert back.value == -there.value
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))


def test_equal_images_do_not_differ():
    found = compared(raw=BASE, copy=BASE.copy())
    assert found.difference("copy", "raw") == Difference(0.0, (0.0, 0.0))
    assert not found.difference("copy", "raw").is_significant
    assert found.tied() == ("raw", "copy")


def test_what_makes_images_easy_or_hard_cancels_in_a_pair():
    found = compared(raw=BASE, noisy=NOISY)
    alone = np.ptp(found.distance("raw").interval)
    assert np.ptp(found.difference("noisy", "raw").interval) < alone / 5


def test_the_lowest_and_those_not_told_apart_from_it():
    found = compared(raw=BASE, nearer=NEARER, noisy=NEARER + 0.01 * RNG.standard_normal((N, DIM)))
    assert found.lowest() in ("nearer", "noisy")
    assert set(found.tied()) == {"nearer", "noisy"}
    assert compared(raw=BASE, nearer=NEARER).tied() == ("nearer",)


def test_the_same_seed_gives_the_same_and_another_seed_another_interval():
    one, again, other = (compared(seed=seed, raw=BASE, nearer=NEARER).difference("nearer", "raw") for seed in (1, 1, 2))
    assert one == again
    assert one.value == other.value
    assert one.interval != other.interval


def test_neither_order_nor_company_changes_a_number():
    one = compared(raw=BASE, nearer=NEARER)
    other = compared(noisy=NOISY, nearer=NEARER, raw=BASE)
    assert one.difference("nearer", "raw") == other.difference("nearer", "raw")
    assert one.distance("raw") == other.distance("raw")


def test_a_paired_interval_of_no_effect_holds_zero_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    trials, held = 40, 0
    for trial in range(trials):
        shared, own, others = rng.standard_normal((3, N, DIM))
        found = compared(seed=trial, resamples=60, one=shared + own, other=shared + others)
        held += not found.difference("one", "other").is_significant
    assert 34 <= held < trials  # 38 are expected, give or take three standard deviations


def test_other_images_are_not_compared():
    with pytest.raises(UserError, match="short: features of 20 images, the others of its image set have 60"):
        compared(raw=BASE, short=BASE[:20])


def test_features_of_another_network_are_not_compared():
    with pytest.raises(UserError, match="4 features cannot be compared with statistics of 6"):
        compared(raw=BASE[:, :4])
