"""Several views of each image: what they are, and the classifier of their mean."""

import pytest
import torch
import torch.nn.functional as F

from robust_models import load, save
from robust_models.checkpoints.flags import CheckpointFlags, reading
from robust_models.errors import UserError
from robust_models.views import KINDS, NOISE, SMALLEST_CROP, Viewed
from tests.tiny import SIZE, tiny_classifier


def x(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def ramp() -> torch.Tensor:
    """Brighter from left to right and, twice as fast, from top to bottom; a window of it is a ramp, too."""
    steps = torch.linspace(0, 1, SIZE)
    return (steps[:, None] * 2 / 3 + steps / 3).expand(1, 3, SIZE, SIZE)


@pytest.mark.parametrize("kinds", [("crop",), ("flip",), ("noise",), KINDS])
def test_the_first_view_is_the_image_and_the_others_are_not(kinds):
    views = Viewed(tiny_classifier(), 6, kinds).copies(x()).unflatten(0, (3, 6))
    assert torch.equal(views[:, 0], x())
    others = (views[:, 1:] != x()[:, None]).flatten(2).any(dim=2)
    assert others.any(dim=1).all()
    assert others.all() or kinds == ("flip",)


def test_a_crop_is_a_window_inside_the_image():
    views = Viewed(tiny_classifier(), 9, ("crop",)).copies(ramp())[1:]
    inner = views[:, 0, 2:-2, 2:-2]  # away from the bilinear border
    down, along = inner.diff(dim=1).mean((1, 2)), inner.diff(dim=2).mean((1, 2))
    torch.testing.assert_close(down, 2 * along, rtol=1e-3, atol=1e-5)
    side = along / ramp()[0, 0].diff(dim=1).mean()
    assert ((side > SMALLEST_CROP - 1e-3) & (side < 1 + 1e-3)).all()
    assert (views.flatten(1).min(dim=1).values >= 0).all()
    assert (views.flatten(1).max(dim=1).values <= 1).all()
    assert len({round(float(value), 4) for value in side}) == 8


def test_a_mirrored_view_is_the_mirrored_image():
    views = Viewed(tiny_classifier(), 8, ("flip",)).copies(x(1))[1:]
    kinds = [torch.allclose(view, x(1)[0].flip(2), atol=1e-6) for view in views]
    assert any(kinds)
    assert not all(kinds)
    assert all(kind or torch.allclose(view, x(1)[0], atol=1e-6) for kind, view in zip(kinds, views, strict=True))


def test_noise_has_its_standard_deviation():
    views = Viewed(tiny_classifier(), 50, ("noise",)).copies(x(1))[1:]
    assert float((views - x(1)).std()) == pytest.approx(NOISE, rel=0.02)


def test_its_probabilities_are_the_mean_over_the_views_and_one_image_does_not_change_another():
    base = tiny_classifier()
    model = Viewed(base, 5)
    with torch.no_grad():
        expected = base(model.copies(x())).softmax(1).unflatten(0, (3, 5)).mean(1)
        torch.testing.assert_close(model(x()).exp(), expected)
        torch.testing.assert_close(model(x())[1:2], model(x()[1:2]))
        assert torch.equal(model(x()), Viewed(base, 5)(x()))
    features = base.features(model.copies(x())).unflatten(0, (3, 5)).mean(1)
    torch.testing.assert_close(model.features(x()), features)


def test_its_gradient_is_that_of_the_mean():
    model = Viewed(tiny_classifier(), 4)
    y = torch.tensor([0, 1, 2])
    inputs = x().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), y, reduction="sum"), inputs)
    direction = torch.randn(x().shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = 1e-2
        sums = [F.cross_entropy(model(x() + s * direction), y, reduction="sum") for s in (step, -step)]
    assert float((gradient * direction).sum()) == pytest.approx(
        float(sums[0] - sums[1]) / (2 * step), rel=0.05, abs=0.05
    )


def test_any_command_takes_it_and_what_is_not_asked_for_leaves_no_trace(tmp_path):
    save(tiny_classifier(), tmp_path / "net.safetensors")
    model = load(tmp_path / "net.safetensors", views=3, view_kinds="flip, noise")
    assert isinstance(model, Viewed)
    assert (model.draws, model.kinds) == (3, ("flip", "noise"))
    assert {"views", "view_kinds"} & reading(CheckpointFlags()).keys() == set()
    assert reading(CheckpointFlags(views=2))["view_kinds"] == "crop,flip,noise"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 1}, "views: 1 is less than 2, of which the first is the image itself"),
        ({"views": 3, "view_kinds": "crops"}, "view_kinds: 'crops' is none of"),
        ({"views": 3, "view_kinds": ","}, "view_kinds: names none; give some of crop, flip, noise"),
        ({"views": 3, "smoothing": 0.1}, "views: 3, but --smoothing 0.1 averages already; give one of them"),
    ],
)
def test_views_that_are_none_are_one_line(tmp_path, settings, message):
    save(tiny_classifier(), tmp_path / "net.safetensors")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "net.safetensors", **settings)
    assert str(caught.value).startswith(message)
    with pytest.raises(UserError, match="view_kinds: flip is for --views, which is not given"):
        CheckpointFlags(view_kinds="flip").load(str(tmp_path / "net.safetensors"))
