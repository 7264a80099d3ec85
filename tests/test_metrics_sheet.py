"""Density, coverage, Vendi score, CMMD: closed forms, brute force in float64, and what each one promises."""

import math

import pytest
import torch

from robust_models import UserError
from robust_models.metrics.cmmd import cmmd
from robust_models.metrics.density_coverage import density_coverage
from robust_models.metrics.diversity import nearest, within_class_distance
from robust_models.metrics.vendi import vendi_score
from tests.test_metrics_few import FEATURES, normal


def by_differences(points: torch.Tensor, centres: torch.Tensor, k: int) -> tuple[float, float]:
    """(density, coverage) from float64 differences alone."""
    points, centres = points.double(), centres.double()
    radii = ((centres[:, None] - centres) ** 2).sum(-1).sort(dim=1).values[:, k]
    inside = ((points[:, None] - centres) ** 2).sum(-1) <= radii
    return float(inside.double().sum() / (k * len(points))), float(inside.any(dim=0).double().mean())


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("features", "reference"), FEATURES.values(), ids=FEATURES)
def test_density_and_coverage_are_those_of_exact_distances(features, reference, k):
    expected = by_differences(features, reference, k)
    assert density_coverage(features, reference, k=k) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_density_and_coverage_on_a_line_by_hand():
    # With k = 1 the radii of 0, 1, 3, 6 are 1, 1, 2, 3. 0.5 lies in two balls, 4.5 in two, 20 in none.
    centres = torch.tensor([[0.0], [1.0], [3.0], [6.0]])
    assert density_coverage(torch.tensor([[0.5], [4.5], [20.0]]), centres, k=1) == (pytest.approx(4 / 3), 1.0)
    assert density_coverage(torch.tensor([[0.5]]), centres, k=1) == (2.0, 0.5)
    with pytest.raises(ValueError, match="more than 5 points, got 4"):
        density_coverage(centres, centres)


def test_alike_sets_have_density_1_and_a_copy_covers_all():
    real = normal(400, 6, 0)
    assert density_coverage(real, real)[1] == 1
    density, coverage = density_coverage(normal(4000, 6, 1), real)
    assert density == pytest.approx(1, abs=0.08)
    assert coverage > 0.99
    assert density_coverage(real + 1000, real) == (0, 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_vendi_counts_the_different_directions(scale):
    groups = torch.eye(7)[:4].repeat_interleave(5, dim=0) * scale
    assert vendi_score(groups) == pytest.approx(4)
    assert vendi_score(groups[:5]) == pytest.approx(1)
    assert vendi_score(torch.eye(6) * scale) == pytest.approx(6)


def test_vendi_weighs_groups_by_their_entropy():
    rows = torch.eye(3)[[0, 0, 0, 1]]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi_score(rows) == pytest.approx(math.exp(entropy))
    with pytest.raises(ValueError, match="features of image 1 are all 0"):
        vendi_score(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_vendi_is_the_same_by_either_gram_matrix():
    rows = normal(30, 30, 0)
    taller = torch.cat([rows, torch.zeros(30, 1)], dim=1)
    assert vendi_score(taller) == pytest.approx(vendi_score(rows), rel=1e-9)
    assert vendi_score(torch.cat([rows, rows])) == pytest.approx(vendi_score(rows), rel=1e-9)


def test_cmmd_of_two_points_each_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[-1.0, 0.0], [0.0, -3.0]])

    def kernel(cosine):
        return math.exp((cosine - 1) / 100)

    expected = 1000 * (2 * kernel(0) - 2 * (2 * kernel(-1) + 2 * kernel(0)) / 4)
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)


def test_cmmd_is_unbiased_and_ignores_lengths():
    draws = [cmmd(normal(40, 8, seed), normal(60, 8, 500 + seed)) for seed in range(200)]
    mean, error = torch.tensor(draws).mean(), torch.tensor(draws).std() / 200**0.5
    assert abs(mean) < 4 * error
    x, y = normal(40, 8, 0), normal(60, 8, 1) + 0.5
    assert cmmd(3 * x, y / 7) == pytest.approx(cmmd(x, y), rel=1e-9)
    with pytest.raises(UserError, match="at least 2 images in each set, got 1 and 60"):
        cmmd(x[:1], y)
    with pytest.raises(UserError, match="7 features cannot be compared with 8"):
        cmmd(x[:, :7], y)


def test_within_class_distance_by_hand():
    rows = torch.tensor([[0.0], [1.0], [3.0], [10.0], [14.0], [99.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert within_class_distance(rows, labels) == pytest.approx(((1 + 3 + 2) / 3 + 4) / 2)  # a class of one has none
    with pytest.raises(ValueError, match="no two of 6 images are of one class"):
        within_class_distance(rows, torch.arange(6))


def test_within_class_distance_of_a_large_class_is_that_of_a_part():
    rows = normal(3000, 4, 0)
    expected = torch.pdist(rows.double()).mean()
    assert within_class_distance(rows, torch.zeros(3000)) == pytest.approx(float(expected), rel=0.03)


def test_the_nearest_real_image_its_distance_and_spacing_by_hand():
    found = nearest(torch.tensor([[0.5], [2.9], [10.0]]), torch.tensor([[0.0], [3.0], [4.0]]))
    assert found.which.tolist() == [0, 1, 2]
    assert found.distance.tolist() == pytest.approx([0.5, 0.1, 6.0])
    assert found.spacing.tolist() == pytest.approx([3.0, 1.0, 1.0])
    assert found.authenticity == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="spacing needs 2 real images, got 1"):
        nearest(torch.zeros(3, 1), torch.zeros(1, 1))


def test_copies_are_found_whatever_their_offset():
    real = normal(700, 6, 0) + 1000
    found = nearest(real[:600], real)
    assert found.which.tolist() == list(range(600))
    assert (found.distance == 0).all()
    assert found.authenticity == 0
