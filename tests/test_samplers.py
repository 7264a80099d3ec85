"""Samplers and starts of generation against their mathematics, and that an image depends on its number alone."""

import numpy as np
import pytest
import torch
from torch import nn

from refine.synthesis import Ball, Work
from refine.synthesis.loop import iterates
from refine.synthesis.samplers import NoisyMomentum
from robust_models.class_seeds import ClassSeeds, open_start
from robust_models.mixture import Mixture
from robust_models.runtime.seeds import STEP, generator

FREE = Ball(100, 0.02, 6)  # a ball that nothing leaves
SLOPE = torch.linspace(-1, 1, 3 * 4 * 4).view(1, 3, 4, 4)


def linear(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Its gradient is SLOPE everywhere."""
    return (x * SLOPE).flatten(1).sum(1)


def way(sampler: NoisyMomentum, objective=linear, ball: Ball = FREE, start: float = 0.5) -> list[torch.Tensor]:
    x = torch.full((len(sampler.rows), 3, 4, 4), start)
    return list(iterates(nn.Identity(), Work(x, torch.zeros(len(x)).long(), objective, sampler=sampler), ball))


def test_on_a_linear_objective_momentum_sums_a_geometric_series():
    points = way(NoisyMomentum(0.8, 0.0, 0, (0,)))
    assert len(points) == FREE.steps + 1
    moved = 0.0
    for step, x in enumerate(points):
        expected = 0.5 - FREE.step_size / 2 * SLOPE * moved
        torch.testing.assert_close(x, expected)
        moved += (1 - 0.8 ** (step + 1)) / (1 - 0.8)


def test_without_momentum_and_noise_it_is_gradient_descent():
    points = way(NoisyMomentum(0.0, 0.0, 0, (0, 1)))
    torch.testing.assert_close(points[-1], (0.5 - 3 * FREE.step_size * SLOPE).expand(2, -1, -1, -1))


@pytest.mark.parametrize(("width", "noise"), [(0.02, 0.01), (0.03, 0.005)])
def test_langevin_has_the_stationary_variance_of_a_quadratic_energy(width, noise):
    # x' - m = a (x - m) + noise * N(0, 1) with a = 1 - h / 2 / width^2 has the variance noise^2 / (1 - a^2).
    step_size = 0.4 * width**2
    a = 1 - step_size / 2 / width**2

    def quadratic(model, x, y):
        return ((x - 0.5) ** 2).flatten(1).sum(1) / (2 * width**2)

    sampler = NoisyMomentum(0.0, noise, 0, tuple(range(200)))
    x = way(sampler, quadratic, Ball(100, step_size, 40))[-1]
    assert float(x.mean()) == pytest.approx(0.5, abs=4 * width / 200)
    assert float(x.var()) == pytest.approx(noise**2 / (1 - a**2), rel=0.05)


def test_langevin_at_temperature_one_draws_the_gaussian_of_its_energy():
    width = 0.05
    step_size = 0.1 * width**2

    def quadratic(model, x, y):
        return ((x - 0.5) ** 2).flatten(1).sum(1) / (2 * width**2)

    sampler = NoisyMomentum(0.0, step_size**0.5, 0, tuple(range(100)))
    x = way(sampler, quadratic, Ball(100, step_size, 100))[-1]
    assert float(x.std()) == pytest.approx(width, rel=0.06)


def test_noise_is_that_of_the_images_number():
    together = way(NoisyMomentum(0.0, 0.01, 7, (3, 4, 5)))
    alone = way(NoisyMomentum(0.0, 0.01, 7, (4,)))
    assert all(torch.equal(x[1:2], y) for x, y in zip(together, alone, strict=True))
    again = way(NoisyMomentum(0.0, 0.01, 7, (4,)))
    assert torch.equal(alone[-1], again[-1])
    assert not torch.equal(alone[-1], way(NoisyMomentum(0.0, 0.01, 8, (4,)))[-1])
    drawn = torch.randn(3, 4, 4, generator=generator("cpu", 7, STEP, 4))
    expected = 0.5 - FREE.step_size / 2 * SLOPE + 0.01 * drawn
    torch.testing.assert_close(alone[1], expected)


def test_the_way_stays_in_ball_and_box():
    points = way(NoisyMomentum(0.9, 0.3, 0, (0, 1)), ball=Ball(0.5, 1.0, 5), start=0.1)
    for x in points:
        assert ((x - 0.1).flatten(1).norm(dim=1) <= 0.5 + 1e-5).all()
        assert 0 <= x.min() <= x.max() <= 1


# Where generation begins


def orthogonal(d: int, widths: list[float]) -> torch.Tensor:
    """[d,R] of orthogonal columns of these lengths."""
    q, _ = torch.linalg.qr(torch.randn(d, len(widths), dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    return q * torch.tensor(widths, dtype=torch.float64)


def gaussian(widths: list[float], noise: float = 0.0, d: int = 12) -> Mixture:
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, 0.5 * torch.ones(1, d, dtype=torch.float64), orthogonal(d, widths)[None], noise * one)


@pytest.mark.parametrize(
    ("widths", "noise", "variance", "kept"),
    [
        ([0.02, 0.1, 0.05], 0.0, 0.99, 3),
        ([0.02, 0.1, 0.05], 0.0, 0.9, 2),  # .0100 and .0025 of .0129
        ([0.02, 0.1, 0.05], 0.0, 0.5, 1),
        ([0.1], 0.01, 0.99, 1),  # the other directions together hold more, but none of them is kept apart
    ],
)
def test_principal_directions_are_the_fewest_that_hold_the_variance(widths, noise, variance, kept):
    mixture = gaussian(widths, noise)
    found = mixture.principal(variance, 0.5)
    values, vectors = torch.linalg.eigh(mixture.covariances[0])
    leading = vectors[:, -kept:] * (0.5 * values[-kept:].sqrt())
    torch.testing.assert_close(found.covariances[0], leading @ leading.T)


def test_a_pca_start_has_the_mean_and_the_narrowed_covariance_of_its_class():
    mixture = gaussian([0.1, 0.05])
    seeds = ClassSeeds(("a", "b"), (mixture, gaussian([0.01])), 2, 4, "made up")
    start = open_start("pca", lambda: seeds, 99)
    assert start.size == (4, 4)
    draws = start(torch.zeros(2000).long(), [generator("cpu", 0, 0, i) for i in range(2000)])
    x = draws[:, :, ::2, ::2].flatten(1).double()
    torch.testing.assert_close(x.mean(0), mixture.means[0], rtol=0, atol=5e-3)
    expected = 0.35**2 * mixture.covariances[0]
    torch.testing.assert_close(torch.cov(x.T), expected, rtol=0, atol=1.5e-4)


def test_noise_and_images_as_starts(tmp_path):
    y, draws = torch.tensor([0, 1]), lambda: [generator("cpu", 0, 0, i) for i in range(2)]
    noise = open_start("noise", lambda: 1 / 0, 5)
    x = noise(y, draws())
    assert (noise.size, tuple(x.shape)) == ((5, 5), (2, 3, 5, 5))
    assert torch.equal(x[1], torch.rand(3, 5, 5, generator=generator("cpu", 0, 0, 1)))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    images = open_start(str(tmp_path / "images.npz"), lambda: 1 / 0, 5)
    assert images.size == (6, 8)
    chosen = images(y, draws())
    known = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    assert all(any(torch.equal(one, image) for image in known) for one in chosen)
