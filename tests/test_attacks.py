import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_models import NORMS, PGD, UserError
from robust_models.attacks import frozen_eval, input_gradient, target_margin
from robust_models.smoothing import SmoothedGradient
from tests.tiny import tiny_classifier

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Linear(nn.Module):
    """Two classes, logits (w.x, -w.x): every attack has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3 * 16 * 16, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        score = x.flatten(1) @ self.w
        return torch.stack([score, -score], 1)


@settings(max_examples=20)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(0, 1),
    targeted=st.booleans(),
    random_start=st.booleans(),
    box=st.sampled_from(["every_step", "last"]),
)
def test_result_is_inside_ball_and_box(norm, eps, targeted, random_start, box):
    attack = PGD(eps, eps, 3, norm=norm, targeted=targeted, random_start=random_start, box=box)
    x_adv = attack(tiny_classifier(), X, Y)
    assert x_adv.shape == X.shape
    assert (NORMS[norm].length(x_adv - X) <= eps + 1e-5).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_eps_zero_and_zero_steps_are_the_identity(classifier):
    assert torch.equal(PGD(0.0, 1.0, 5)(classifier, X, Y), X)
    assert torch.equal(PGD(1.0, 1.0, 0)(classifier, X, Y), X)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("targeted", [False, True])
def test_one_large_step_on_a_linear_model_meets_the_closed_form(norm, targeted):
    model, x, eps = Linear(), 0.5 + 0.1 * (X - 0.5), 0.2
    x_adv = PGD(eps, 10.0, 1, norm=norm, targeted=targeted)(model, x, torch.zeros(6, dtype=torch.int64))
    w = model.w.detach()
    direction = w / w.norm() if norm == "l2" else w.sign()
    expected = x + (1 if targeted else -1) * eps * direction.view(1, 3, 16, 16)
    torch.testing.assert_close(x_adv, expected, rtol=1e-5, atol=1e-6)


def test_targeted_descends_and_untargeted_ascends(classifier):
    def loss(x):
        return F.cross_entropy(classifier(x), Y).item()

    assert loss(PGD(1.0, 0.25, 7, targeted=True)(classifier, X, Y)) < loss(X)
    assert loss(PGD(1.0, 0.25, 7)(classifier, X, Y)) > loss(X)


def test_mode_and_flags_are_left_as_found_even_after_an_error(classifier):
    classifier.train()
    classifier.network.stem.eval()
    classifier.head.weight.requires_grad_(False)
    modes = [m.training for m in classifier.modules()]
    flags = [p.requires_grad for p in classifier.parameters()]
    PGD(0.5, 0.1, 2)(classifier, X, Y)
    with pytest.raises(RuntimeError, match="inside"), frozen_eval(classifier):
        raise RuntimeError("inside")
    assert modes == [m.training for m in classifier.modules()]
    assert flags == [p.requires_grad for p in classifier.parameters()]


def test_parameters_and_batch_norm_collect_nothing(classifier):
    classifier.train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    PGD(0.5, 0.1, 3, restarts=2, random_start=True)(classifier, X, Y)
    assert all(p.grad is None for p in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_works_under_no_grad(classifier):
    with torch.no_grad():
        inside = PGD(0.5, 0.2, 3)(classifier, X, Y)
    assert torch.equal(inside, PGD(0.5, 0.2, 3)(classifier, X, Y))
    assert not inside.requires_grad


def test_each_sample_is_attacked_on_its_own(classifier):
    attack = PGD(0.5, 0.2, 3)
    alone = torch.cat([attack(classifier, X[i : i + 1], Y[i : i + 1]) for i in range(len(X))])
    torch.testing.assert_close(attack(classifier, X, Y), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_never_do_worse(classifier, targeted):
    def failure(restarts):
        attack = PGD(2.0, 0.5, 2, random_start=True, restarts=restarts, targeted=targeted)
        margin = target_margin(classifier(attack(classifier, X, Y, generator=torch.Generator().manual_seed(0))), Y)
        return margin if targeted else -margin

    once, often = failure(1), failure(5)
    assert (often >= once - 1e-6).all()
    assert (often > once + 1e-6).any()


@pytest.mark.parametrize("targeted", [False, True])
def test_the_best_iterate_is_the_best_of_the_run(classifier, targeted):
    attack = PGD(3.0, 3.0, 4, targeted=targeted, keep="best")  # steps so long that the last is not always the best
    with frozen_eval(classifier), torch.no_grad():
        points = [iterate.x_adv for iterate in attack.iterates(classifier, X, Y, X)]
        losses = torch.stack([F.cross_entropy(classifier(x), Y, reduction="none") for x in points])
    chosen = losses.argmin(dim=0) if targeted else losses.argmax(dim=0)
    assert len(points) == 5
    expected = torch.stack([points[k][i] for i, k in enumerate(chosen.tolist())])
    torch.testing.assert_close(attack(classifier, X, Y), expected, rtol=0, atol=0)


def test_iterates_carry_the_losses_that_their_gradients_took(classifier):
    attack = PGD(1.0, 0.3, 3)
    with frozen_eval(classifier):
        *points, last = attack.iterates(classifier, X, Y, X)
        for x_adv, loss in points:
            torch.testing.assert_close(loss, F.cross_entropy(classifier(x_adv), Y, reduction="none"))
    assert last.loss is None
    assert torch.equal(last.x_adv, attack(classifier, X, Y))


def test_keeping_the_best_of_no_steps_is_the_start(classifier):
    assert torch.equal(PGD(1.0, 1.0, 0, keep="best")(classifier, X, Y), X)


def test_input_gradient_equals_finite_differences(classifier):
    model, x = classifier.double(), X[:1].double()
    gradient = input_gradient(model.network, x, Y[:1])
    direction = torch.randn_like(x)
    step = 1e-6

    def loss(x):
        return F.cross_entropy(model.network(x), Y[:1]).item()

    slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_margin_is_positive_exactly_where_the_prediction_is_y():
    logits = torch.randn(50, 4)
    y = torch.randint(0, 4, (50,))
    assert torch.equal(target_margin(logits, y) > 0, logits.argmax(1) == y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "l3"}, "norm: 'l3' is none of l2, linf"),
        ({"eps": -1.0}, "eps: -1.0 is less than 0"),
        ({"restarts": 0}, "restarts: 0 is less than 1"),
        ({"box": "never"}, "box: 'never' is neither"),
        ({"center": "middle"}, "center: 'middle' is neither"),
        ({"keep": "first"}, "keep: 'first' is neither"),
        ({"keep": "best", "box": "last"}, "keep: 'best' compares images"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        PGD(**{"eps": 1.0, "step_size": 0.1, "steps": 1, **fields})


def test_uint8_pixels_are_refused(classifier):
    with pytest.raises(UserError, match=r"x: torch.uint8 .* expected float"):
        PGD(0.5, 0.1, 1)(classifier, X.to(torch.uint8), Y)


def test_an_attack_takes_another_gradient(classifier):
    x, y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    plain = PGD(0.5, 0.2, 3)
    smoothed = PGD(0.5, 0.2, 3, gradient=SmoothedGradient(0.1, 2, torch.Generator().manual_seed(0)))
    again = PGD(0.5, 0.2, 3, gradient=SmoothedGradient(0.1, 2, torch.Generator().manual_seed(0)))
    x_adv = smoothed(classifier, x, y)
    assert not torch.equal(x_adv, plain(classifier, x, y))
    assert torch.equal(x_adv, again(classifier, x, y))
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-6
