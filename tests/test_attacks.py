import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eval.robust.seeded_pgd import SeededPGD
from refine import Refiner, bigroc
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


STRANGE_IMAGES = {
    "around zero": (2 * X - 1, r"pixels run from -.* to .*, outside \[0, 1\]"),
    "grey levels": (255 * X, r"pixels run from .* to 2.*, outside \[0, 1\]"),
    "nan": (X / 0 * 0, "pixels run from nan to nan"),
    "uint8": (X.to(torch.uint8), r"torch.uint8 \[6, 3, 16, 16\]; expected float"),
    "one image": (X[0], r"torch.float32 \[3, 16, 16\]; expected float"),
    "an array": (X.numpy(), "ndarray; expected float"),
}
STRANGE_LABELS = {
    "too few": (Y[:2], r"y: torch.int64 \[2\] for 6 images; expected one class index for each"),
    "probabilities": (torch.rand(6, 3), r"y: torch.float32 \[6, 3\] for 6 images"),
    "floats": (Y.float(), r"y: torch.float32 \[6\] for 6 images"),
    "bools": (Y > 0, r"y: torch.bool \[6\] for 6 images"),
    "too large": (Y + 1, r"y: classes run from 1 to 3, but the classifier has 3 classes \(0 to 2\)"),
    "negative": (Y - 1, "y: classes run from -1 to 1, but the classifier has 3 classes"),
}


@pytest.mark.parametrize("name", STRANGE_IMAGES)
def test_attack_and_refinement_refuse_the_same_images_with_the_same_words(classifier, name):
    x, message = STRANGE_IMAGES[name]
    for act in (PGD(0.5, 0.1, 1), Refiner(classifier, 0.5), SeededPGD(PGD(0.5, 0.1, 1))):
        arguments = {Refiner: (x, Y), PGD: (classifier, x, Y), SeededPGD: (classifier, x, Y, torch.arange(6))}
        with pytest.raises(UserError, match=message):
            act(*arguments[type(act)])


@pytest.mark.parametrize("name", STRANGE_LABELS)
def test_attack_and_refinement_refuse_the_same_labels_with_the_same_words(classifier, name):
    y, message = STRANGE_LABELS[name]
    with pytest.raises(UserError, match=message):
        PGD(0.5, 0.1, 1)(classifier, X, y)
    with pytest.raises(UserError, match=message):
        Refiner(classifier, 0.5)(X, y)


def test_classes_of_an_unknown_network_are_at_least_not_negative():
    with pytest.raises(UserError, match="y: classes run from -1 to 0, but class indices are 0 or more"):
        PGD(0.5, 0.1, 1)(Linear(), X[:2], torch.tensor([0, -1]))


STRANGE_BALLS = {
    "unknown": ({"norm": "l22"}, "norm: 'l22' is none of l2, linf, l1, l1.5, fourier, unconstrained; did you mean l2?"),
    "negative": ({"eps": -1.0}, "eps: -1.0 is less than 0"),
    "nan": ({"eps": math.nan}, "eps: nan is less than 0"),
    "grey levels": ({"norm": "linf", "eps": 8.0}, "did you mean 8/255 = 0.0314?"),
    "infinite l2": ({"eps": math.inf, "step_size": 0.1}, "eps: inf is no radius for norm=l2"),
    "infinite l1": ({"norm": "l1", "eps": math.inf, "step_size": 0.1}, "eps: inf is no radius for norm=l1"),
    "bounded": ({"norm": "unconstrained", "eps": 1.0}, "eps: 1 bounds nothing for norm=unconstrained; write eps=.inf"),
    "endless step": ({"step_size": math.inf}, "step_size: inf is no length"),
    "backwards": ({"step_size": -0.1}, "step_size: -0.1 is no length"),
}


@pytest.mark.parametrize("name", STRANGE_BALLS)
def test_attack_and_refinement_refuse_the_same_balls_with_the_same_words(classifier, name):
    settings, message = STRANGE_BALLS[name]
    settings = {"eps": 0.5, "step_size": 0.1, **settings}
    for make in (lambda **s: PGD(**s, steps=1), lambda **s: Refiner(classifier, **s), lambda **s: bigroc(**s)):
        with pytest.raises(UserError, match=re.escape(message)):
            make(**settings)


def test_without_a_ball_the_length_of_a_step_must_be_given(classifier):
    with pytest.raises(UserError, match="step_size: norm=unconstrained has no radius to derive it from"):
        Refiner(classifier, math.inf, norm="unconstrained")
    moved = Refiner(classifier, math.inf, norm="unconstrained", step_size=0.3, steps=3)(X, Y) - X
    assert (NORMS["l2"].length(moved) <= 0.9 + 1e-5).all()
    assert (NORMS["l2"].length(moved) > 0.3).all()


def test_works_in_inference_mode_on_images_made_there(classifier):
    attack = PGD(0.5, 0.2, 3, random_start=True, restarts=2)
    with torch.inference_mode():
        inside = attack(classifier, X * 1, Y * 1, start=X * 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inside, attack(classifier, X, Y, start=X, generator=torch.Generator().manual_seed(0)))
