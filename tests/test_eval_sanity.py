"""Signs of masked gradients: a model for each, made to show it, and a healthy one that shows none."""

import pytest
import torch
from torch import Tensor, nn

from eval.robust.sanity import check_sanity, everywhere
from robust_models import NORMS

SIZE = 8  # pixels


class Model(nn.Module):
    """x [N,3,8,8] -> two logits from a margin of class 1, computed by `margin` on the first pixel and the mean."""

    def __init__(self, margin) -> None:
        super().__init__()
        self.margin = margin
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        margin = self.margin(x)
        return torch.stack([-margin, margin], dim=1) / 2


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Nearly grey, so that the box is far."""
    return torch.randint(118, 138, (40, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


EPS = 0.1


def brightness(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1) - 0.5 + 0.05


def check(margin, images: Tensor, norm: str = "linf", eps: float = EPS):
    """What the checks say of a model that is right where the margin is above 0, on images of class 1."""
    return check_sanity(Model(margin), images, torch.ones(len(images), dtype=torch.int64), norm=norm, eps=eps)


def warned(sanity) -> set[str]:
    signs = {
        "does not reach 0": "huge",
        "random restarts help": "restarts",
        "one step is stronger": "single step",
        "gradients vanish": "zero gradients",
        "noise is stronger": "noise",
    }
    names = {name for words, name in signs.items() for sentence in sanity.warnings if words in sentence}
    assert len(names) == len(sanity.warnings)
    return names


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("linf", 0.1), ("l2", 0.2), ("l2", 2.0)])
def test_a_linear_model_shows_none(images, norm, eps):
    sanity = check(brightness, images, norm, eps)
    assert sanity.warnings == []
    assert sanity.n == 40
    assert sanity.figures["huge_eps"] == 0


def test_quantised_input_has_no_gradient(images):
    sanity = check(lambda x: brightness((x * 16).round() / 16), images)
    assert {"zero gradients", "huge"} <= warned(sanity)
    assert sanity.figures["zero_gradient"] == 1
    assert any("100.0 % of the images have an input gradient that is zero" in text for text in sanity.warnings)


def test_a_saturated_softmax_has_no_gradient(images):
    assert "zero gradients" in warned(check(lambda x: 1e5 * brightness(x), images))


def test_reversed_gradients_lose_against_noise(images):
    def margin(x: Tensor) -> Tensor:
        first = x[:, 0, 0, 0] - 0.5 + 0.02
        return 2 * first.detach() - first  # the value of first, the gradient of -first

    signs = warned(check(margin, images))
    assert {"noise", "huge"} <= signs
    assert "zero gradients" not in signs


def test_a_plateau_is_left_by_luck(images):
    """Flat but for one pixel far down, which a random start may find."""
    sanity = check(lambda x: (x[:, 0, 0, 0] - 0.5 + 0.7 * EPS).sign() * 1.0, images)
    assert {"restarts", "zero gradients"} <= warned(sanity)
    assert sanity.figures["restarts"] < sanity.figures["pgd"]


def test_a_valley_holds_small_steps(images):
    """Downhill to a valley above zero, a ridge behind it, then far down: one long step gets over."""

    def margin(x: Tensor) -> Tensor:
        depth = (0.5 - x.flatten(1).mean(1)) / EPS  # 1 where every pixel has gone down by eps
        valley = 1 - depth + 4 * torch.relu(depth - 0.3) - 12 * torch.relu(depth - 0.7)
        return valley

    sanity = check(margin, images)
    assert "single step" in warned(sanity)
    assert sanity.figures["single_step"] == 0
    assert sanity.figures["pgd"] > 0.9


def test_nothing_right_nothing_to_check(images):
    sanity = check(lambda x: -brightness(x), images)
    assert (sanity.n, sanity.warnings, sanity.figures) == (0, [], {})


def test_every_warning_has_its_figures(images):
    for text in check(lambda x: brightness((x * 16).round() / 16), images).warnings:
        assert " % " in text
        assert "\n" not in text


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_everywhere_reaches_grey_from_the_farthest_image(norm):
    white = torch.ones(1, 3, 4, 4)
    assert float(NORMS[norm].length(white - 0.5)) == pytest.approx(everywhere(norm, white.numel()))
