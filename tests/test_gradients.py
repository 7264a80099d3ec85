"""`eval gradients`: alignment of input gradients with the data, in closed forms and for embedded classifiers."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval import gradient_alignment
from eval.cli import main
from eval.gradients.alignment import draw_targets, share_in_span, squared_distances
from robust_models import UserError

SIDE, CLASSES = 6, 3
D = 3 * SIDE**2


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Floats in [0,1] [n,3,6,6] around one centre for each of three classes, which take turns."""
    rng = torch.Generator().manual_seed(seed)
    centres = 0.3 + 0.4 * torch.rand(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
    y = torch.arange(n) % CLASSES
    return (centres[y] + 0.1 * torch.randn(n, 3, SIDE, SIDE, generator=rng)).clamp(0, 1), y


class Bayes(nn.Module):
    """log p_c(x) of the reference images of each class with Gaussian noise sigma: the best classifier there is."""

    def __init__(self, x_ref: Tensor, y_ref: Tensor, sigma: float) -> None:
        super().__init__()
        self.of_class = [x_ref[y_ref == c].flatten(1) for c in range(CLASSES)]
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        exponents = [-torch.cdist(x.flatten(1), own).square() / (2 * self.sigma**2) for own in self.of_class]
        return torch.stack([e.logsumexp(dim=1) - math.log(e.shape[1]) for e in exponents], dim=1)


class Linear(nn.Module):
    def __init__(self, weight: Tensor, sign: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Buffer(sign * weight.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_bayes_classifier_is_aligned_perfectly(sigma):
    reference = images(60)
    found = gradient_alignment(Bayes(*reference, sigma), images(20, 1), reference, sigma=sigma)
    assert found.alignment.value == pytest.approx(1, abs=1e-3)
    assert (found.each[0] > 0.999).all()
    assert (found.n, found.n_reference, found.sigma) == (20, 60, sigma)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_with_one_image_of_each_class_the_direction_is_their_difference(sign):
    x_ref, y_ref = images(3, 5)
    found = gradient_alignment(Linear(x_ref, sign), images(12, 1), (x_ref, y_ref))
    assert found.each[0] == pytest.approx(torch.full((12,), sign), abs=1e-5)


def test_gradients_in_the_span_of_the_data_and_across_it():
    """Images differ in red alone: gradients in red are on their manifold, gradients in blue are off it."""
    rng = torch.Generator().manual_seed(0)
    x = torch.full((200, 3, SIDE, SIDE), 0.5)
    x[:, 0] = torch.rand(200, SIDE, SIDE, generator=rng)
    y = torch.arange(200) % CLASSES
    for channel, expected in ((0, 1.0), (2, 0.0)):
        weight = torch.zeros(CLASSES, 3, SIDE, SIDE)
        weight[:, channel] = torch.randn(CLASSES, SIDE, SIDE, generator=rng)
        found = gradient_alignment(Linear(weight), (x, y), limit=30)
        assert found.each[1] == pytest.approx(torch.full((30,), expected), abs=1e-4)


def test_random_gradients_are_aligned_by_chance():
    class Noise(nn.Module):
        """Another random direction at every image."""

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.randn(len(x), CLASSES, D, generator=torch.Generator().manual_seed(len(x)))
            return (weight @ x.flatten(1)[:, :, None])[:, :, 0]

    found = gradient_alignment(Noise(), images(400), neighbours=20, batch_size=400)
    assert found.by_chance == pytest.approx(19 / D)
    assert found.on_manifold.interval[0] < found.by_chance < found.on_manifold.interval[1]
    assert found.alignment.interval[0] < 0 < found.alignment.interval[1]
    assert found.lift == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_share_is_that_of_an_orthonormal_basis(k):
    rng = torch.Generator().manual_seed(k)
    points = torch.rand(4, k, 3, SIDE, SIDE, generator=rng)
    g = nn.functional.normalize(torch.randn(4, D, generator=rng))
    differences = (points[:, 1:] - points[:, :1]).flatten(2)
    basis = torch.linalg.qr(differences.mT).Q  # [4,D,k-1]
    expected = (basis.mT @ g[:, :, None]).square().sum((1, 2))
    assert share_in_span(g, points) == pytest.approx(expected, abs=1e-5)
    twice = torch.cat([points, points], dim=1)  # images that are there twice span no more
    assert share_in_span(g, twice) == pytest.approx(expected, abs=1e-5)


def test_an_image_of_the_reference_does_not_count_for_itself():
    x, y = images(30)
    near = squared_distances(x, x, torch.device("cpu"))
    assert near.isinf().nonzero().tolist() == [[i, i] for i in range(30)]
    near = near.masked_fill(near.isinf(), 0)
    assert near == pytest.approx(torch.cdist(x.flatten(1), x.flatten(1)).square(), abs=1e-3)
    alone = gradient_alignment(Linear(images(3, 5)[0]), (x[:9], y[:9]), (x[9:], y[9:]))
    among = gradient_alignment(
        Linear(images(3, 5)[0]), (x[:9], y[:9]), (torch.cat([x[9:], x[8:9]]), torch.cat([y[9:], y[8:9]]))
    )
    assert torch.equal(alone.each[0][8], among.each[0][8])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_changes_nothing(batch_size):
    model, (x, y) = Bayes(*images(60), 0.3), images(20, 1)
    whole, parts = (gradient_alignment(model, (x, y), images(60), batch_size=size) for size in (20, batch_size))
    for one, other in zip(whole.each, parts.each, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_targets_are_other_classes_of_the_reference_each_as_likely():
    y = torch.arange(3000) % 3
    target = draw_targets(y, torch.tensor([0, 1, 2, 5]), 0)
    assert not (target == y).any()
    assert target.unique().tolist() == [0, 1, 2, 5]
    shares = torch.bincount(target[y == 0], minlength=6) / 1000
    assert shares[[1, 2, 5]] == pytest.approx(torch.full((3,), 1 / 3), abs=0.06)
    assert torch.equal(target, draw_targets(y, torch.tensor([0, 1, 2, 5]), 0))
    assert not torch.equal(target, draw_targets(y, torch.tensor([0, 1, 2, 5]), 1))


def test_the_model_is_left_as_found_and_flat_ones_have_no_alignment():
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :CLASSES]

    model = nn.Sequential(nn.Dropout(0.5), Flat()).train()
    found = gradient_alignment(model, images(30))
    assert (found.alignment.value, found.on_manifold.value) == (0, 0)
    assert model.training


def test_probabilities_are_warned_of():
    found = gradient_alignment(nn.Sequential(Linear(images(3, 5)[0]), nn.Softmax(dim=1)), images(30))
    assert any("probabilities, not logits" in warning for warning in found.warnings)


X, Y = images(12)
BAD = {
    "another size": ({"reference": (torch.rand(9, 3, 8, 8), Y[:9])}, r"its images are \[3, 8, 8\], those of data"),
    "no noise": ({"sigma": 0}, "sigma: 0 is no noise"),
    "one class": ({"reference": (X, 0 * Y)}, "all of its images are of class 0"),
    "a class that is not there": ({"reference": (X, Y.clamp_max(1))}, "class 2 has no image other than"),
    "too few neighbours": ({"neighbours": 1}, "1 images span no direction"),
    "labels that are no classes": ({"reference": (X, Y + 5)}, "classes run from 5 to 7"),
    "only itself": ({"reference": (X[:3], Y[:3])}, "class 0 has no image other than"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        gradient_alignment(Linear(images(3, 5)[0]), (X, Y), **given)
    assert "\n" not in str(error.value)


def test_a_gradient_that_is_not_finite_names_the_image():
    class Root(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - x.amin((1, 2, 3), keepdim=True)).sqrt())

    with pytest.raises(UserError, match="the input gradient of image 0 is not finite"):
        gradient_alignment(Root(images(3, 5)[0]), images(12))


DATA = "robust_models/pretrained/cifar10-test-500.npz"


def test_the_embedded_robust_classifier_is_told_from_the_standard_one(capsys):
    found = {}
    for name in ("cifar10-ablation-standard", "cifar10-ablation-l2-050"):
        assert main(["gradients", "--ckpt", name, "--data", DATA, "--limit", "60", "--device", "cpu", "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    standard, robust = found.values()
    assert standard["alignment_interval"][1] < robust["alignment_interval"][0]
    assert standard["lift"] < 2 < 7 < robust["lift"]
    assert "a poor refiner" in standard["reading"]
    assert "fit to refine" in robust["reading"]


def test_in_words_and_from_python(capsys, tmp_path):
    arrays = np.load(DATA)
    np.savez(tmp_path / "train.npz", arr_0=arrays["arr_0"][200:], arr_1=arrays["arr_1"][200:])
    words = ["gradients", "--ckpt", "cifar10-ablation-l2-050", "--data", DATA, "--reference", f"{tmp_path}/train.npz"]
    assert main([*words, "--limit", "40", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    found = gradient_alignment(words[2], DATA, tmp_path / "train.npz", limit=40, device="cpu")
    assert f"alignment with the data's score {found.alignment.value:.4f}" in out
    assert "N = 40 against 300 reference images" in out
