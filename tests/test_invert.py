"""Inversion: the objective by hand, where it begins, and that the latent comes nearer."""

import json

import numpy as np
import pytest
import torch

from refine.cli import main
from refine.synthesis.tasks.invert import GREY, NOISE_STD, TASK, find_start, relative_distance
from robust_models import Description, RobustClassifier, UserError, open_images, to_float
from tests.tiny import SIZE, tiny_pixels


def run(*words):
    return main([str(word) for word in ["--task", "invert", *words]])


@pytest.fixture
def images_npz(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=tiny_pixels(5)[0])
    return tmp_path / "images.npz"


def test_the_distance_by_hand():
    features = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]])
    wanted = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found = relative_distance(features, wanted)
    assert found[1:].tolist() == [0, 1]
    assert found[0] > 1e30  # of nothing, anything is far


def test_the_gradient_of_the_distance():
    """d/df |f - w| / |w| is the unit vector over |w|; 0, not NaN, where they are equal."""
    features = torch.tensor([[3.0, 5.0], [1.0, 2.0]], requires_grad=True)
    wanted = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    (gradient,) = torch.autograd.grad(relative_distance(features, wanted).sum(), features)
    torch.testing.assert_close(gradient, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_the_latent_distance_falls(classifier, checkpoint, images_npz, tmp_path, capsys):
    out = tmp_path / "out.npz"
    words = ["--ckpt", checkpoint, "--input", images_npz, "--out", out, "--json", "--step-size", 0.05, "--steps", 60]
    assert run(*words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["objective_after"] < 0.5 * summary["objective_before"]
    x, wanted = (to_float(open_images(path).read(0, 5)) for path in (out, images_npz))
    with torch.no_grad():
        distance = relative_distance(classifier.features(x), classifier.features(wanted))
    assert distance.mean().item() == pytest.approx(summary["objective_after"], abs=1e-3)


def test_images_of_another_size_are_inverted_at_their_own(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", arr_0=rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8))
    words = ["--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / "o.npz", "--steps", 10, "--json"]
    assert run(*words, "--start-from", "mean") == 0
    assert open_images(tmp_path / "o.npz").size == (20, 24)
    summary = json.loads(capsys.readouterr().out)
    assert summary["objective_after"] < summary["objective_before"]


def test_noise_is_drawn_for_each_image_from_the_seed(classifier, images_npz):
    start = find_start("noise", 3, open_images(images_npz), classifier)
    rows = torch.arange(5)
    assert torch.equal(start(rows)[3:], start(rows[3:]))
    assert not torch.equal(start(rows)[0], start(rows)[1])
    assert not torch.equal(start(rows), find_start("noise", 4, open_images(images_npz), classifier)(rows))
    x = start(rows)
    assert x.std(dim=(0, 2, 3)).mean().item() == pytest.approx(NOISE_STD, rel=0.05)
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.tensor([0.4, 0.5, 0.6]), rtol=0, atol=0.02)


def test_the_mean_is_the_classifiers_or_grey(classifier, images_npz):
    x = find_start("mean", 0, open_images(images_npz), classifier)(torch.arange(2))
    assert torch.equal(x, torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).expand(2, 3, 16, 16))
    plain = RobustClassifier.from_description(Description("preact_resnet10_w16", ("a", "b"), SIZE))
    x = find_start("mean", 0, open_images(images_npz), plain)(torch.arange(1))
    assert x.flatten(2).unique(dim=2).flatten().tolist() == list(GREY)


def test_another_set_as_start_is_begun_again_where_it_is_shorter(classifier, images_npz, tmp_path):
    np.savez(tmp_path / "other.npz", arr_0=tiny_pixels(2, seed=9)[0])
    start = find_start(str(tmp_path / "other.npz"), 0, open_images(images_npz), classifier)
    others = to_float(open_images(tmp_path / "other.npz").read(0, 2))
    assert torch.equal(start(torch.tensor([1, 2, 3])), others[[1, 0, 1]])


def test_a_start_of_another_size_is_told(classifier, images_npz, tmp_path):
    np.savez(tmp_path / "other.npz", arr_0=np.zeros((2, 8, 12, 3), np.uint8))
    message = (
        r"^start_from: .*other.npz has images of 12x8 pixels, but those to invert have 16x16; they must be the same$"
    )
    with pytest.raises(UserError, match=message):
        find_start(str(tmp_path / "other.npz"), 0, open_images(images_npz), classifier)
    with pytest.raises(UserError, match="no such file or folder"):
        find_start("noisy", 0, open_images(images_npz), classifier)


def test_defaults_grow_with_the_images():
    small, large = TASK.defaults(32), TASK.defaults(224)
    assert large.eps == pytest.approx(7 * small.eps)
    assert large.step_size == pytest.approx(7 * small.step_size)
