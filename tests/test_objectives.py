import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_models import PGD, UserError, input_gradient
from robust_models.smoothing import SmoothedGradient
from tests.tiny import tiny_classifier
from train.config import AttackConfig, AugmentConfig
from train.mixing import mix
from train.objectives import CrossEntropy, Trades, adversarial_weights, divergence
from train.step import attack_at, cosine

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cross_entropy_is_the_mean_over_attacked_images(classifier):
    objective = CrossEntropy(label_smoothing=0.1)
    attack = PGD(0.5, 0.2, 2)
    x_adv = objective.attacked(classifier, attack, X, Y, seeded())
    assert torch.equal(x_adv, attack(classifier, X, Y))
    loss, logits = objective.loss(classifier, X, x_adv, Y)
    torch.testing.assert_close(loss, F.cross_entropy(classifier(x_adv), Y, label_smoothing=0.1))
    assert torch.equal(logits, classifier(x_adv))
    shares = F.one_hot(Y, 3).float()
    torch.testing.assert_close(objective.loss(classifier, X, x_adv, shares)[0], loss)
    torch.testing.assert_close(objective.attacked(classifier, attack, X, shares, seeded()), x_adv)


def test_divergence_is_kullback_and_leiblers():
    logits, probs = torch.randn(5, 4), torch.randn(5, 4).softmax(1)
    expected = (probs * (probs.log() - logits.softmax(1).log())).sum(1)
    torch.testing.assert_close(divergence(logits, probs), expected)
    torch.testing.assert_close(divergence(probs.log(), probs), torch.zeros(5))


@pytest.mark.parametrize("random_start", [False, True])
def test_trades_maximises_the_divergence_that_it_adds(classifier, random_start):
    objective, attack = Trades(beta=6.0), PGD(1.0, 0.3, 5, random_start=random_start)
    clean = classifier(X).softmax(1).detach()
    x_adv = objective.attacked(classifier, attack, X, Y, seeded())
    assert ((x_adv - X).flatten(1).norm(dim=1) <= 1 + 1e-5).all()
    noise = (X + 0.1 * torch.randn(X.shape, generator=seeded())).clamp(0, 1)
    reached = divergence(classifier(x_adv), clean)
    assert (reached > divergence(classifier(noise), clean)).all()
    loss, logits = objective.loss(classifier, X, x_adv, Y)
    torch.testing.assert_close(loss, F.cross_entropy(classifier(X), Y) + 6 * reached.mean())
    assert torch.equal(logits, classifier(x_adv))


def test_without_attack_trades_is_cross_entropy(classifier):
    x_adv = Trades().attacked(classifier, PGD(0.0, 1.0, 0), X, Y, seeded())
    assert torch.equal(x_adv, X)
    torch.testing.assert_close(Trades().loss(classifier, X, x_adv, Y)[0], F.cross_entropy(classifier(X), Y))


def test_weights_are_perturbed_upwards_and_put_back():
    model = tiny_classifier()
    before = {name: value.clone() for name, value in model.named_parameters()}
    loss = F.cross_entropy(model(X), Y)
    with adversarial_weights(model, loss, 0.01):
        assert F.cross_entropy(model(X), Y) > loss
        for name, value in model.named_parameters():
            moved = (value - before[name]).norm()
            expected = 0.01 * before[name].norm() if value.ndim > 1 else torch.tensor(0.0)
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_mixup_blends_images_and_labels_alike():
    x = F.one_hot(torch.arange(8) % 3, 3).float().view(8, 3, 1, 1).expand(8, 3, 4, 4)  # an image is its label
    y = torch.arange(8) % 3
    mixed, shares = mix(x, y, 3, AugmentConfig(mix="mixup"), seeded())
    torch.testing.assert_close(mixed.mean((2, 3)), shares)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert not torch.equal(mixed, x)


def test_cutmix_labels_are_the_shares_of_pixels_and_pixels_stay_whole():
    y = torch.arange(400) % 3
    x = F.one_hot(y, 3).float().view(-1, 3, 1, 1).expand(-1, 3, 8, 6)
    mixed, shares = mix(x, y, 3, AugmentConfig(mix="cutmix"), seeded())
    torch.testing.assert_close(mixed.mean((2, 3)), shares)
    assert ((mixed == 0) | (mixed == 1)).all()
    kept = shares.gather(1, y.unsqueeze(1))
    assert 0.5 < kept.mean() < 0.85  # E[kept] is 1/2 plus what the border cuts off, plus partners of the same class
    half, _ = mix(x, y, 3, AugmentConfig(mix="cutmix", mix_share=0.5), seeded())
    changed = lambda images: (images != x).flatten(1).any(1).float().mean().item()  # noqa: E731
    assert changed(half) == pytest.approx(changed(mixed) / 2, abs=0.06)


def test_mixing_is_a_function_of_its_generator_and_off_by_default():
    x = torch.rand(8, 3, 4, 4)
    config = AugmentConfig(mix="cutmix")
    first, again = (mix(x, torch.arange(8), 8, config, seeded(3)) for _ in range(2))
    assert all(map(torch.equal, first, again))
    x_same, y_same = mix(x, torch.arange(8), 8, AugmentConfig(), seeded())
    assert x_same is x
    assert torch.equal(y_same, torch.arange(8))


def test_the_attack_follows_its_schedules_and_the_guards_demand():
    config = AttackConfig(eps={0: 0.0, 0.1: 0.25, 0.5: 0.5}, step_size={0: 0.5, 0.5: 0.2}, steps={0: 1, 0.5: 3})
    assert [attack_at(config, p).eps for p in (0.0, 0.1, 0.49, 0.5, 1.0)] == [0.0, 0.25, 0.25, 0.5, 0.5]
    assert [attack_at(config, p).steps for p in (0.0, 0.1, 0.5)] == [0, 1, 3]
    assert config.radius == 0.5
    doubled = attack_at(config, 0.1, least_steps=2)
    assert (doubled.steps, doubled.step_size) == (2, 0.25)
    assert attack_at(config, 0.5, least_steps=2).steps == 3
    assert attack_at(config, 0.0, least_steps=2).steps == 0


def test_cosine_falls_from_one_to_zero():
    assert [cosine(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


class Kink(nn.Module):
    """logits (|s|, 0) of the mean s of x - 0.5: the gradient jumps where s is 0."""

    def forward(self, x):
        s = (x - 0.5).flatten(1).sum(1)
        return torch.stack([s.abs(), torch.zeros_like(s)], 1)


def first_logit(logits: torch.Tensor, _y: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def test_a_smoothed_gradient_is_that_of_the_smoothed_loss():
    # E|s + n| for n ~ N(0, t^2) has the slope erf(s / (t sqrt(2))); a sum of 4 pixels has t = 2 sigma.
    x = torch.full((1, 1, 2, 2), 0.5) + torch.tensor([0.05])
    smoothed = SmoothedGradient(sigma=0.1, draws=4000, generator=seeded())
    gradient, loss = smoothed(Kink(), x, Y[:1], first_logit)
    s, t = 0.2, 0.2
    assert gradient.flatten().tolist() == pytest.approx([math.erf(s / (t * math.sqrt(2)))] * 4, abs=0.04)
    mean = t * math.sqrt(2 / math.pi) * math.exp(-(s**2) / (2 * t**2)) + s * math.erf(s / (t * math.sqrt(2)))
    assert loss.item() == pytest.approx(mean, abs=0.01)
    assert input_gradient(Kink(), x, Y[:1], first_logit).flatten().tolist() == [1.0] * 4


@pytest.mark.parametrize(("fields", "message"), [({"sigma": 0.0}, "sigma: 0.0"), ({"draws": 0}, "draws: 0 is less")])
def test_impossible_smoothing_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        SmoothedGradient(**{"sigma": 0.1, **fields})
