"""The method's variants, several classifiers, the library calls, and the recipes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refine
from refine import LOSSES, Refiner, bigroc, consensus, together
from refine.config import RefineConfig
from refine.method import find_loss
from robust_models import NORMS, Description, RobustClassifier, UserError
from robust_models.attacks import frozen_eval, target_margin
from robust_models.folding import folded
from robust_models.runtime.config import RECIPES, read_recipe, resolve
from tests.tiny import CLASSES, tiny_classifier

X = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])


def notebook_loop(model, x, y, eps, steps):
    """The authors' notebooks: the ball's origin is set lazily, by the first projection; every step is clipped."""
    origin = None
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-F.cross_entropy(model(x), y), x)
        x = x.detach() + 1.5 * eps / steps * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        origin = x if origin is None else origin
        x = (origin + (x - origin).renorm(2, 0, eps)).clamp(0, 1)
    return x


@pytest.mark.parametrize(("eps", "steps"), [(0.5, 7), (5.0, 7), (2.0, 1)])
def test_first_step_center_is_the_notebooks_loop(classifier, eps, steps):
    expected = notebook_loop(classifier, X, Y, eps, steps)
    refined = refine.refine(classifier, X, Y, eps=eps, steps=steps, center="first_step")
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-5)


def test_the_ball_around_the_first_step_reaches_further_but_not_beyond_eps_and_a_step():
    model, grey = _Sign(), torch.full((1, 3, 16, 16), 0.5)
    attack = bigroc(0.5, steps=3, center="first_step")
    moved = NORMS["l2"].length(attack(model, grey, torch.tensor([0])) - grey)
    assert moved.item() == pytest.approx(0.5 + attack.step_size, rel=1e-5)


class _Sign(nn.Module):
    """Logits (s, -s) with s the sum of the pixels less mid-grey: a gradient of constant direction."""

    def forward(self, x):
        score = (x - 0.5).flatten(1).sum(1) / 100
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_best_iterate_is_no_worse_than_any_other(classifier, loss):
    attack = bigroc(6.0, steps=4, keep="best", loss=loss)
    with frozen_eval(classifier), torch.no_grad():
        candidates = [attack.loss(classifier(x), Y) for x in refine.trajectory(attack, classifier, X, Y)]
        kept = attack.loss(classifier(attack(classifier, X, Y)), Y)
    torch.testing.assert_close(kept, torch.stack(candidates).amin(dim=0), rtol=0, atol=1e-4)


def test_the_best_iterate_costs_one_forward_pass_more(classifier):
    calls = []
    classifier.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    bigroc(1.0, steps=4)(classifier, X, Y)
    assert calls == [True] * 4
    calls.clear()
    bigroc(1.0, steps=4, keep="best")(classifier, X, Y)
    assert calls == [True] * 4 + [False]


def test_where_the_target_cannot_be_reached_the_best_iterate_may_be_the_image_itself():
    class Bowl(nn.Module):
        """Highest at mid-grey, so that every step from there away is a loss."""

        def forward(self, x):
            score = -(x - 0.5).square().flatten(1).sum(1)
            return torch.stack([score, torch.zeros_like(score)], 1)

    near = torch.full((1, 3, 16, 16), 0.5)
    near[0, 0, 0, 0] = 0.501
    y = torch.tensor([0])
    assert torch.equal(refine.refine(Bowl(), near, y, eps=1.0, keep="best"), near)
    assert not torch.equal(refine.refine(Bowl(), near, y, eps=1.0), near)


def test_a_trajectory_runs_from_the_image_to_the_result(classifier):
    for center in ("input", "first_step"):
        attack = bigroc(1.0, steps=3, center=center)
        points = refine.trajectory(attack, classifier, X, Y)
        assert len(points) == 4
        assert torch.equal(points[0], X)
        assert torch.equal(points[-1], attack(classifier, X, Y))


def test_losses_by_their_definitions():
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    p = logits.softmax(1)[range(6), y]
    torch.testing.assert_close(LOSSES["ce"](logits, y), -p.log())
    torch.testing.assert_close(LOSSES["margin"](logits, y), -target_margin(logits, y))
    torch.testing.assert_close(LOSSES["log_odds"](logits, y), -(p.log() - (1 - p).log()))


def test_log_odds_stay_finite_where_the_probability_rounds_to_one():
    logits = torch.tensor([[300.0, 0.0, 0.0]], requires_grad=True)
    loss = LOSSES["log_odds"](logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2) - 300)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.5, 0.5]]))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_loss_in_every_norm_falls_and_moves_towards_the_target(classifier, loss, norm):
    eps = {"l2": 1.0, "linf": 0.02}[norm]
    refined = refine.refine(classifier, X, Y, eps=eps, norm=norm, loss=loss)
    assert (NORMS[norm].length(refined - X) <= eps + 1e-5).all()
    after, before = classifier(refined), classifier(X)
    assert (find_loss(loss)(after, Y) < find_loss(loss)(before, Y)).all()
    if loss != "energy":  # which knows no target
        assert (target_margin(after, Y) > target_margin(before, Y)).all()


@pytest.fixture
def others():
    torch.manual_seed(7)
    return [tiny_classifier(), tiny_classifier()]


def test_several_classifiers_descend_the_mean_of_their_losses(others):
    losses = [F.cross_entropy(model(X), Y, reduction="none") for model in others]
    attack = bigroc(1.0)
    torch.testing.assert_close(attack.loss(together(others)(X), Y), torch.stack(losses).mean(dim=0))
    refined = refine.refine(others, X, Y, eps=1.0)
    for model, before in zip(others, losses, strict=True):
        assert (F.cross_entropy(model(refined), Y, reduction="none") < before).all()
    twice = refine.refine([others[0], others[0]], X, Y, eps=1.0)
    torch.testing.assert_close(twice, refine.refine(others[0], X, Y, eps=1.0), rtol=0, atol=1e-5)


def test_the_consensus_has_the_mean_probabilities(others):
    mean = torch.stack([model(X).softmax(1) for model in others]).mean(dim=0)
    logits = consensus(together(others)(X))
    torch.testing.assert_close(logits.softmax(1), mean)
    assert torch.equal(refine.pseudo_labels(together(others), X), mean.argmax(1))
    assert torch.equal(consensus(others[0](X)), others[0](X))


def test_each_classifier_sees_the_images_at_its_own_size(classifier):
    large = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, 24)).eval()
    seen = []
    for model in (classifier, large):
        model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    x = torch.rand(2, 3, 20, 28)
    refined = refine.refine([classifier, large], x, [0, 1], eps=1.0, steps=1)
    assert seen == [16, 24]
    assert refined.shape == x.shape
    assert ((refined - x).abs() > 1e-4).float().mean() > 0.9  # the gradient reaches all of the image


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("airplane", "automobile"), "classifier 1 has 3 classes, classifier 2 has 2"),
        (("airplane", "bird", "automobile"), "class 1 is 'automobile' for classifier 1 and 'bird' for classifier 2"),
    ],
)
def test_classifiers_of_other_classes_are_refused(classifier, names, message):
    other = RobustClassifier.from_description(Description("preact_resnet10_w16", names, 16))
    with pytest.raises(UserError, match=message):
        together([classifier, other])


def test_images_may_come_from_an_iterator_and_are_taken_only_when_asked_for(classifier):
    taken = []

    def batches():
        for i in (0, 2):
            taken.append(i)
            yield X[i : i + 2]

    refined = refine.refine(classifier, batches(), eps=1.0)
    assert taken == []
    first = next(refined)
    assert taken == [0]
    torch.testing.assert_close(first, refine.refine(classifier, X[:2], eps=1.0))
    assert len(list(refined)) == 1
    pairs = refine.refine(classifier, iter([(X, Y)]), eps=1.0)
    assert torch.equal(next(pairs), refine.refine(classifier, X, Y, eps=1.0))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_refiner_works_inside_samplers(classifier, context):
    refiner = Refiner(classifier, eps=1.0)
    with context():
        x, y = X * 1, Y * 1
        inside = [refiner(x), refiner(x, y)]
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert torch.equal(inside[0], refiner(X))
    assert torch.equal(inside[1], refiner(X, Y))
    assert not any(x_ref.requires_grad for x_ref in inside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_refiner_gives_back_the_dtype_it_got_and_computes_in_float32(classifier, dtype):
    refined = Refiner(classifier, eps=1.0)(X.to(dtype), Y)
    assert refined.dtype == dtype
    assert torch.equal(refined, Refiner(classifier, eps=1.0)(X.to(dtype).float(), Y).to(dtype))


def test_refiner_of_pixels_around_zero(classifier):
    around_zero = Refiner(classifier, eps=1.0, pixel_range=(-1, 1))(2 * X - 1, Y)
    torch.testing.assert_close(around_zero, 2 * Refiner(classifier, eps=1.0)(X, Y) - 1, rtol=0, atol=1e-5)


def test_refiner_leaves_image_and_model_as_found(classifier):
    classifier.train().requires_grad_(True)
    x, before = X.clone().requires_grad_(), {k: v.clone() for k, v in classifier.state_dict().items()}
    refined = Refiner(classifier, eps=1.0)(x, Y)
    assert torch.equal(x, X)
    assert x.grad is None
    assert not refined.requires_grad
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def test_refiner_targets(classifier):
    birds = Refiner(classifier, eps=1.0, targets="Bird")(X)
    assert torch.equal(birds, Refiner(classifier, eps=1.0)(X, [2] * 5))
    assert torch.equal(birds, Refiner(classifier, eps=1.0, targets=2)(X))
    assert torch.equal(Refiner(classifier, eps=1.0)(X), Refiner(classifier, eps=1.0)(X, classifier(X).argmax(1)))
    assert Refiner(classifier, eps=1.0)(X[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X.mul(255).to(torch.uint8), None, r"images: torch.uint8 \[5, 3, 16, 16\]; expected float .*to_float"),
        (X[0], None, r"images: torch.float32 \[3, 16, 16\]; expected"),
        (X.numpy(), None, "images: ndarray; expected float tensors"),
        (2 * X - 1, None, r"images: pixels run from -.* to .*, outside \[0, 1\].*pixel_range=\(-1, 1\)"),
        (X * 255, None, r"images: pixels run from .* to 2.*, outside \[0, 1\]"),
        (X / 0 * 0, None, "images: pixels run from nan to nan"),
        (X, [0, 1], r"y: torch.int64 \[2\] for 5 images"),
        (X, Y.float(), "y: torch.float32"),
        (X, [0, 1, 2, 3, 0], r"y: classes run from 0 to 3, but the classifier has 3 classes"),
    ],
)
def test_impossible_images_and_labels_are_named(classifier, x, y, message):
    with pytest.raises(UserError, match=message) as caught:
        refine.refine(classifier, x, y, eps=1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "loss: 'hinge' is none of ce, margin, log_odds"),
        ({"norm": "linf", "eps": 8}, r"eps: 8 is outside \[0, 1\] for norm=linf"),
        ({"center": "middle"}, "center: 'middle' is neither 'input' nor 'first_step'"),
        ({"keep": "first"}, "keep: 'first' is neither 'last' nor 'best'"),
        ({"targets": "cow"}, "targets: class 'cow' is none of the classifier's 3 classes"),
        ({"pixel_range": (0, 255)}, r"pixel_range: \(0, 255\) is neither \(0, 1\) nor \(-1, 1\)"),
    ],
)
def test_impossible_settings_are_named(classifier, settings, message):
    with pytest.raises(UserError, match=message):
        Refiner(classifier, **{"eps": 1.0, **settings})


def test_missing_labels_are_named(classifier):
    with pytest.raises(UserError, match="y: None, and targets is 'given'"):
        Refiner(classifier, eps=1.0, targets="given")(X)
    with pytest.raises(UserError, match="y: labels for an iterator"):
        refine.refine(classifier, iter([X]), Y, eps=1.0)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="model: an empty list"):
        together([])


def with_statistics(arch):
    """Batch norms that do something."""
    model = tiny_classifier(arch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize(
    ("arch", "left"),
    [("resnet18_w16", 0), ("preact_resnet10_w16", 5), ("torchvision:resnet18", 0)],
)
def test_a_folded_classifier_computes_the_same(arch, left):
    model = with_statistics(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = folded(model)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in copied.modules()) == left
    with torch.no_grad():
        torch.testing.assert_close(copied(X), model(X), rtol=1e-4, atol=1e-5)
    assert copied.class_names == model.class_names
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(copied.features(X), model.features(X), rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_traced_stays_what_it_is(classifier):
    class Branching(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x if x.mean() > 0 else -x)

    classifier.network = Branching(classifier.network)
    assert torch.equal(folded(classifier)(X), classifier(X))


def test_a_convolution_that_something_else_reads_is_not_folded(classifier):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
            nn.init.uniform_(self.norm.running_var, 0.2, 0.5)

        def forward(self, x):
            h = self.conv(x)
            return self.head((h + self.norm(h)).mean((2, 3)))

    classifier.network = Both().eval()
    assert torch.equal(folded(classifier)(X), classifier(X))


BIGROC_RECIPES = sorted(path.name for path in RECIPES.glob("bigroc_*.yaml"))


@pytest.mark.parametrize("recipe", BIGROC_RECIPES)
def test_every_recipe_parses_and_its_header_gives_the_command(recipe):
    config = resolve(RefineConfig, read_recipe(recipe), {"ckpt": "c", "input": "i.npz", "out": "o.npz"})
    assert (config.steps, config.norm) == (7, "l2")
    assert config.targets in ("given", "pseudo")
    header = (RECIPES / recipe).read_text()
    assert f"--config {recipe} " in header
    assert "not ours" in header


def test_recipes_have_the_papers_radii():
    table_7 = {
        "vae": 25, "dcgan": 5, "wgan_gp": 5, "sngan": 3, "ssgan": 3, "cgan": 5, "cgan_pd": 2, "biggan": 1,
        "diff_biggan": 1, "adm_g_128": 1.5, "adm_g_256": 3, "adm_g_u_256": 1.5, "biggan_deep_128": 5,
        "biggan_deep_256": 5,
    }  # fmt: skip
    assert {f"bigroc_{name}.yaml" for name in table_7} == set(BIGROC_RECIPES)
    for name, eps in table_7.items():
        assert read_recipe(f"bigroc_{name}.yaml")["eps"] == eps
