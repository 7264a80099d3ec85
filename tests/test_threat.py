import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robust_models.threat import NORMS, check_ball

norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
SHAPE = (5, 3, 4, 4)


def draw(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@norms
@given(
    seed=st.integers(0, 1000), eps=st.just(0.0) | st.floats(1e-6, 10), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6])
)
def test_projection_lands_in_the_ball_and_leaves_its_inside_alone(norm, seed, eps, scale):
    delta = draw(seed, scale)
    projected = norm.project(delta, eps)
    assert (norm.length(projected) <= eps * (1 + 1e-5)).all()
    torch.testing.assert_close(norm.project(projected, eps), projected, rtol=1e-5, atol=0)
    inside = norm.length(delta) < eps
    assert torch.equal(projected[inside], delta[inside])


@norms
@given(seed=st.integers(0, 1000))
def test_projection_is_the_nearest_point_of_the_ball(norm, seed):
    delta, other = draw(seed, 3.0), norm.project(draw(seed + 5000, 3.0), 1.0)
    nearest = norm.project(delta, 1.0)
    assert ((delta - nearest).flatten(1).norm(dim=1) <= (delta - other).flatten(1).norm(dim=1) + 1e-5).all()


@norms
@pytest.mark.parametrize("scale", [1e-35, 1e-10, 1.0, 1e30])
def test_steepest_step_has_length_one_whatever_the_gradients_size(norm, scale):
    gradient = draw(1, scale)
    step = norm.steepest(gradient)
    torch.testing.assert_close(norm.length(step), torch.ones(5))
    assert ((step * gradient.sign()).flatten(1) >= 0).all()


@norms
def test_steepest_step_maximises_the_linear_gain_over_the_unit_ball(norm):
    gradient = draw(2)
    gain = (norm.steepest(gradient) * gradient).flatten(1).sum(1)
    for seed in range(100):
        rival = draw(seed + 10)
        rival = rival / norm.length(rival).view(-1, 1, 1, 1)
        assert (gain >= (rival * gradient).flatten(1).sum(1)).all()


@norms
def test_a_flat_gradient_gives_no_step(norm):
    assert torch.equal(norm.steepest(torch.zeros(SHAPE)), torch.zeros(SHAPE))


@norms
def test_random_start_fills_the_ball_and_repeats_with_its_generator(norm):
    like = torch.zeros(2000, 1, 1, 2)
    first, again = (norm.random(like, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    lengths = norm.length(first)
    assert lengths.max() <= 0.5 * (1 + 1e-6)
    # In two dimensions the share of a ball's volume within half its radius is 1/4.
    assert abs((lengths < 0.25).float().mean().item() - 0.25) < 0.05


@given(angle=st.floats(0, 2 * math.pi))
def test_l2_projection_keeps_the_direction(angle):
    delta = torch.tensor([3 * math.cos(angle), 3 * math.sin(angle)]).view(1, 1, 1, 2)
    torch.testing.assert_close(NORMS["l2"].project(delta, 0.5), delta / 6)


def test_a_linf_radius_in_grey_levels_is_recognised():
    with pytest.raises(ValueError, match=r"eps: 8 is outside \[0, 1\] for norm=linf .* 8/255 = 0.0314"):
        check_ball("linf", 8)
    check_ball("l2", 30)
