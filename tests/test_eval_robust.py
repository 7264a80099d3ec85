"""Robust accuracy: closed form on a linear model, restarts, batch size, labels, intervals."""

from itertools import pairwise

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from eval import SeededPGD, binomial_interval, measure_robustness
from eval.robust.seeded_pgd import random_start
from robust_models import NORMS, PGD, Description, RobustClassifier, to_float
from robust_models.attacks import frozen_eval

CLASSES = ("airplane", "cat", "dog", "ship")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (41, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model(images) -> RobustClassifier:
    """Random weights; batch norm has seen the images, without which one class would take them all."""
    torch.manual_seed(0)
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, image_size=16)).train()
    for _ in range(30):
        model(to_float(images))
    return model.eval()


@pytest.fixture(scope="module")
def labels(model, images) -> torch.Tensor:
    """The model's own predictions, some of them spoilt: clean accuracy is 36/41."""
    with torch.no_grad():
        y = model(to_float(images)).argmax(1)
    y[::9] = (y[::9] + 1) % len(CLASSES)
    return y


def pgd(eps: float, steps: int = 3, restarts: int = 1) -> list[SeededPGD]:
    attack = PGD(eps, 2.5 * eps / steps, steps, random_start=True)
    return [SeededPGD(attack, restart=restart) for restart in range(restarts)]


def test_eps_zero_is_clean(model, images, labels):
    outcome = measure_robustness(model, images, labels, pgd(0.0, restarts=2))
    assert outcome.correct.sum() == 36
    assert torch.equal(outcome.robust, outcome.correct)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_model_is_robust_where_its_margin_exceeds_eps_times_the_dual_norm(norm):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(2, 48, generator=generator)
    weight -= weight.mean(1, keepdim=True)  # grey is on the boundary, so eps can be small against the box
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(weight)
    model = RobustClassifier(network, Description("linear", ("no", "yes"), image_size=4))
    # Far enough from 0 and 255 that the box does not help the defender.
    x_u8 = torch.randint(90, 166, (200, 3, 4, 4), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 2, (200,), generator=generator)
    difference = weight[1] - weight[0]
    margin = (to_float(x_u8).flatten(1) @ difference) * (2 * y - 1)
    dual = difference.norm() if norm == "l2" else difference.abs().sum()
    eps = float(margin.clamp_min(0).quantile(0.75) / dual)
    attack = PGD(eps, eps, 20, norm=norm, random_start=True)  # what the start has beside the gradient halves each step
    outcome = measure_robustness(model, x_u8, y, [SeededPGD(attack)])
    assert torch.equal(outcome.correct, margin > 0)
    clear = (margin - eps * dual).abs() > 1e-3 * eps * dual
    assert torch.equal(outcome.robust[clear], (margin > eps * dual)[clear])
    assert 0 < outcome.robust.sum() < outcome.correct.sum()


def test_restarts_never_raise_robust_accuracy(model, images, labels):
    masks = [measure_robustness(model, images, labels, pgd(0.05, 1, restarts)).robust for restarts in (1, 2, 4)]
    for fewer, more in pairwise(masks):
        assert not (more & ~fewer).any()
    assert not (masks[0] & ~measure_robustness(model, images, labels, []).robust).any()


def test_only_still_robust_images_meet_the_next_attempt(model, images, labels):
    met = []

    def spoil_the_first_half(_model, x, _y, index):
        met.append(index.tolist())
        x_adv = x.clone()
        x_adv[: len(x) // 2] = 1 - x_adv[: len(x) // 2]
        return x_adv

    outcome = measure_robustness(model, images, labels, [spoil_the_first_half] * 3, batch_size=100)
    assert met[0] == outcome.correct.nonzero().flatten().tolist()
    assert len(met[0]) >= len(met[1]) >= len(met[2])
    assert set(outcome.robust.nonzero().flatten().tolist()) <= set(met[2]) <= set(met[1]) <= set(met[0])


def test_nothing_is_attacked_where_nothing_is_right(model, images):
    with torch.no_grad():
        wrong = (model(to_float(images)).argmax(1) + 1) % len(CLASSES)
    outcome = measure_robustness(model, images, wrong, pgd(0.1, restarts=2))
    assert not outcome.correct.any()
    assert not outcome.robust.any()


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_batch_size_does_not_change_the_result(model, images, labels, batch_size):
    attempts = pgd(0.08, steps=2, restarts=2)
    whole = measure_robustness(model, images, labels, attempts, batch_size=41)
    assert 0 < whole.robust.sum() < whole.correct.sum()
    parts = measure_robustness(model, images, labels, attempts, batch_size=batch_size)
    assert torch.equal(parts.robust, whole.robust)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_starts_belong_to_seed_restart_and_image(norm):
    x = torch.full((6, 3, 8, 8), 0.5)
    settings = {"norm": norm, "eps": 0.1, "seed": 3, "restart": 1}
    start = random_start(x, torch.arange(6), **settings)
    lengths = NORMS[norm].length(start - x)
    assert (lengths <= 0.1 + 1e-6).all()
    assert (lengths > 0.05).all()
    assert torch.equal(random_start(x[[4, 2]], torch.tensor([4, 2]), **settings), start[[4, 2]])
    assert not torch.equal(start[0], start[1])
    for other in ({"seed": 4}, {"restart": 2}):
        assert not torch.equal(random_start(x, torch.arange(6), **(settings | other)), start)


def test_adversarial_images_stay_in_ball_and_box(model, images, labels):
    x = to_float(images)
    (attempt,) = pgd(0.3)
    x_adv = attempt(model, x, labels, torch.arange(len(x)))
    assert (NORMS["l2"].length(x_adv - x) <= 0.3 + 1e-5).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_without_random_start_it_is_the_shared_attack(model, images, labels):
    x = to_float(images)
    attack = PGD(0.2, 0.1, 3)
    assert torch.equal(SeededPGD(attack)(model, x, labels, torch.arange(len(x))), attack(model, x, labels))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_early_stop_ends_at_the_first_point_that_is_wrong(model, images, labels, norm):
    x, steps = to_float(images), 6
    attack = PGD(0.2, 0.05, steps, norm=norm) if norm == "l2" else PGD(0.01, 0.003, steps, norm=norm)
    with frozen_eval(model):
        points = torch.stack([point.x_adv for point in attack.iterates(model, x, labels, x)])
    with torch.no_grad():
        wrong = torch.stack([model(point).argmax(1) != labels for point in points])
    first = torch.where(wrong.any(0), wrong.int().argmax(0), steps)
    assert len(first.unique()) > 2
    found = SeededPGD(attack, early_stop=True)(model, x, labels, torch.arange(len(x)))
    assert torch.allclose(found, points[first, torch.arange(len(x))], atol=1e-5)


def test_early_stop_is_never_weaker(model, images, labels):
    attack = PGD(0.05, 0.05, 4, random_start=True)
    last, stopped = (
        measure_robustness(model, images, labels, [SeededPGD(attack, early_stop=early_stop)]).robust
        for early_stop in (False, True)
    )
    assert not (stopped & ~last).any()
    assert 0 < stopped.sum() < len(labels)


def test_the_model_is_left_as_found(images, labels):
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, image_size=16)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_robustness(model, images[:4], labels[:4], pgd(0.1, 1))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (57, 100), (1, 1195), (9_999, 10_000)])
def test_interval_is_wilsons(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert binomial_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
