import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from robust_models.errors import UserError
from robust_models.threat import L1, NORMS, check_ball, per_sample

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
    assert ((step * gradient / scale).flatten(1).sum(1) > 0).all()


@norms
def test_steepest_step_maximises_the_linear_gain_over_the_unit_ball(norm):
    gradient = draw(2)
    gain = (norm.steepest(gradient) * gradient).flatten(1).sum(1)
    for seed in range(50):
        other = draw(seed + 10)
        for rival in (other, norm.steepest(other)):
            rival = rival / norm.length(rival).view(-1, 1, 1, 1)
            assert (gain >= (rival * gradient).flatten(1).sum(1) * (1 - 1e-6)).all()


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


@given(seed=st.integers(0, 1000), eps=st.sampled_from([0.1, 1.0, 5.0]))
def test_l1_projection_is_the_solution_of_its_quadratic_programme(seed, eps):
    delta = draw(seed, 2.0)[:1, :1, :1]
    v = delta.flatten().double().numpy()
    n = len(v)
    # The optimum is v inside the ball, else the nearest feasible point among the optima of all sets of nonzero entries.
    points = [v] if np.abs(v).sum() <= eps else []
    for kept in itertools.product([False, True], repeat=n):
        if any(kept) and np.abs(v).sum() > eps:
            point = np.where(kept, v - np.sign(v) * (np.abs(v[list(kept)]).sum() - eps) / sum(kept), 0)
            if (point * v >= 0).all():
                points.append(point)
    expected = torch.from_numpy(min(points, key=lambda point: ((point - v) ** 2).sum())).float().view_as(delta)
    torch.testing.assert_close(NORMS["l1"].project(delta, eps), expected, rtol=0, atol=1e-5)


def test_l1_projection_of_a_whole_image_meets_its_optimality_condition():
    delta = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    projected = NORMS["l1"].project(delta, 12.0)
    torch.testing.assert_close(NORMS["l1"].length(projected), torch.full((2,), 12.0))
    for before, after in zip(delta, projected, strict=True):
        moved = (before - after).abs()
        theta = moved[after != 0]  # all that stay move by one and the same length, and none that vanish by more
        torch.testing.assert_close(theta, theta.mean().expand_as(theta))
        assert moved.max() <= theta.mean() * (1 + 1e-5)
        assert torch.equal(after.sign()[after != 0], before.sign()[after != 0])


@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_l1_step_solves_the_linear_programme_with_bounded_entries(share):
    gradient = draw(4)
    count = max(1, int(share * 48))
    gain = (L1(share).steepest(gradient) * gradient).flatten(1).sum(1)
    for g, reached in zip(gradient.flatten(1).numpy(), gain, strict=True):
        halves = [*g, *-g]
        best = linprog([-h for h in halves], A_ub=[[1.0] * 96], b_ub=[1.0], bounds=[(0, 1 / count)] * 96)
        assert reached.item() == pytest.approx(-best.fun, rel=1e-5)


def test_l1_draws_are_uniform():
    # In 3 dimensions the first entry of a uniform draw has density 1.5 * (1 - |t|)^2, whose mean size is 1/4.
    sizes = NORMS["l1"].random(torch.zeros(20_000, 1, 1, 3), 1.0, torch.Generator().manual_seed(0)).abs()
    assert sizes.mean(0).flatten().tolist() == pytest.approx([0.25] * 3, abs=0.005)
    assert (sizes.sum((1, 2, 3)) < 0.5).float().mean().item() == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize("spread", [1, 6])
@pytest.mark.parametrize("eps", [1e-3, 0.5, 12.0])
def test_l15_projection_of_a_whole_image_meets_its_optimality_condition(eps, spread):
    delta = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta = delta.abs().pow(spread).copysign(delta)
    projected = NORMS["l1.5"].project(delta, eps)
    torch.testing.assert_close(NORMS["l1.5"].length(projected), torch.full((3,), eps, dtype=torch.float64))
    assert (projected * delta >= 0).all()
    for before, after in zip(delta, projected, strict=True):
        ratio = (before - after).abs() / after.abs().sqrt()  # what is taken off goes along the norm's gradient
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-7, atol=1e-9)


def test_l15_draws_are_uniform():
    # The share of a ball's volume within half its radius is 2^-dim, in every octant alike.
    draws = NORMS["l1.5"].random(torch.zeros(20_000, 1, 1, 3), 1.0, torch.Generator().manual_seed(0))
    inside = NORMS["l1.5"].length(draws) < 0.5
    assert inside.float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    grid = torch.rand(200_000, 1, 1, 3, generator=torch.Generator().manual_seed(1))
    expected = grid[NORMS["l1.5"].length(grid) <= 1].mean(0)
    torch.testing.assert_close(draws.abs().mean(0), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("shape", [(4000, 1, 4, 6), (4000, 1, 5, 3)])
def test_fourier_draws_are_uniform_in_every_frequency(shape):
    delta = NORMS["fourier"].random(torch.zeros(shape), 2.0, torch.Generator().manual_seed(0))
    spectrum = torch.fft.fft2(delta, norm="ortho")
    for row in range(shape[2]):
        for column in range(shape[3]):
            real = 2 * row % shape[2] == 0 and 2 * column % shape[3] == 0
            moduli = spectrum[:, 0, row, column].abs() / 2
            assert moduli.max() <= 1 + 1e-5
            uniform = moduli if real else moduli.square()
            assert uniform.mean().item() == pytest.approx(0.5, abs=0.03)
            assert uniform.var().item() == pytest.approx(1 / 12, abs=0.01)
            assert abs(spectrum[:, 0, row, column].mean().item()) < 0.08


def test_a_fourier_ball_clips_only_the_frequencies_that_are_too_strong():
    rows = torch.arange(8).view(8, 1)
    wave = torch.cos(2 * math.pi * rows / 8).expand(8, 8)  # all in the frequencies (1, 0) and (7, 0), 4 in each
    ripple = 0.01 * torch.cos(2 * math.pi * 3 * rows / 8).expand(8, 8)
    delta = (wave + ripple).view(1, 1, 8, 8)
    assert NORMS["fourier"].length(delta).item() == pytest.approx(4.0)
    torch.testing.assert_close(NORMS["fourier"].project(delta, 1.0), (wave / 4 + ripple).view(1, 1, 8, 8))


def test_without_constraint_nothing_is_projected_and_no_start_is_drawn():
    free, delta = NORMS["unconstrained"], draw(0, 100.0)
    assert torch.equal(free.project(delta, math.inf), delta)
    with pytest.raises(UserError, match="random_start: a whole space has no uniform draw"):
        free.random(delta, math.inf)
    check_ball("unconstrained", math.inf)
    with pytest.raises(ValueError, match=r"eps: 0.5 bounds nothing for norm=unconstrained; write eps=.inf"):
        check_ball("unconstrained", 0.5)


with_oracle = pytest.mark.parametrize(
    "norm", [NORMS[name] for name in ("l2", "linf", "l1", "l1.5")], ids=lambda n: n.name
)


def image(seed: int) -> torch.Tensor:
    """Pixels in [0,1], a third of them black or white."""
    x = 1.5 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.25
    return x.clamp(0, 1)


@with_oracle
@given(
    seed=st.integers(0, 1000),
    eps=st.sampled_from([0.0, 1e-3, 0.5, 3.0, 100.0]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_no_point_of_ball_and_box_goes_farther_than_the_linear_oracles(norm, seed, eps, scale):
    gradient, x = draw(seed, scale), image(seed)
    gradient[:, 0, 0] = 0
    delta = norm.linear_oracle(gradient, x, torch.full((5,), eps))
    assert (norm.length(delta) <= eps * (1 + 1e-5)).all()
    assert ((x + delta - 0.5).abs() <= 0.5 + 1e-6).all()
    gain = (delta * (gradient / scale)).flatten(1).sum(1)
    for k in range(20):  # random points, and points near the steepest way
        way = draw(seed + 2000 + k) if k % 2 else norm.steepest(gradient) + 0.1 * draw(seed + 3000 + k)
        rival = (x + norm.project(eps * way / per_sample(norm.length(way), way), eps)).clamp(0, 1) - x
        assert (gain >= (rival * (gradient / scale)).flatten(1).sum(1) - 1e-5 * (1 + eps)).all()


@with_oracle
@pytest.mark.parametrize("eps", [0.05, 0.4, 1.0, 2.5])
def test_the_linear_oracle_is_the_solvers(norm, eps):
    """On 8 numbers: a linear programme for L1 and Linf, SLSQP for the two smooth norms."""
    generator = torch.Generator().manual_seed(1)
    gradient, x = torch.randn(4, 1, 2, 4, generator=generator), image(3)[:4, :1, :2]
    found = norm.linear_oracle(gradient, x, torch.full((4,), eps)).flatten(1)
    for w, start, delta in zip(gradient.flatten(1).double().numpy(), x.flatten(1).double().numpy(), found, strict=True):
        room = np.where(w > 0, 1 - start, start)
        power = {"l2": 2.0, "l1.5": 1.5}.get(norm.name)
        if power is None:
            total = {"A_ub": [[1.0] * 8], "b_ub": [eps]} if norm.name == "l1" else {}
            most = room if norm.name == "l1" else np.minimum(room, eps)
            best = linprog(-np.abs(w), **total, bounds=[(0, float(m)) for m in most]).fun
        else:
            inside = {"type": "ineq", "fun": lambda d, p=power: eps**p - (d**p).sum()}
            bounds, first = [(0, float(m)) for m in room], np.minimum(room, eps / 8)
            best = minimize(
                lambda d, w=w: -(np.abs(w) * d).sum(), first, bounds=bounds, constraints=inside, tol=1e-12
            ).fun
        assert (delta.double().numpy() * w).sum() == pytest.approx(-best, rel=2e-4, abs=1e-6)


@with_oracle
def test_each_sample_of_the_linear_oracle_has_its_own_radius(norm):
    gradient, x, eps = draw(7), image(7), torch.tensor([0.0, 0.1, 1.0, 5.0, 1000.0])
    together = norm.linear_oracle(gradient, x, eps)
    for i in range(5):
        assert torch.equal(norm.linear_oracle(gradient[[i]], x[[i]], eps[[i]])[0], together[i])
    torch.testing.assert_close(x[4] + together[4], (gradient[4] > 0).float())  # a corner of the box
    assert torch.equal(norm.linear_oracle(torch.zeros(SHAPE), x, eps), torch.zeros(SHAPE))


def test_a_norm_without_a_linear_oracle_says_so():
    with pytest.raises(UserError, match="norm: fourier has no Frank-Wolfe steps"):
        NORMS["fourier"].linear_oracle(draw(0), image(0), torch.ones(5))
