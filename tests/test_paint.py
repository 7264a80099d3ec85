"""Painting: the objective by hand, the feature rises, and nothing outside the mask changes by a bit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from refine.cli import main
from refine.network import Network
from refine.synthesis.loop import faithful_outside
from refine.synthesis.tasks.features import check_feature
from refine.synthesis.tasks.paint import TASK, raising
from robust_models import UserError, open_images, to_float
from tests.tiny import tiny_pixels

X0 = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.zeros(3, dtype=torch.int64)


def run(*words):
    return main([str(word) for word in ["--task", "paint", *words]])


@pytest.fixture
def images_npz(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=tiny_pixels(4)[0])
    return tmp_path / "images.npz"


def test_the_objective_by_hand(classifier):
    """The paper maximises 0.1 * rep[k] - 90 * mean(((x0 - x)(1 - mask))^2)."""
    network = Network(classifier)
    mask = torch.zeros(3, 1, 16, 16)
    mask[:, :, :4] = 1
    x = X0.clone()
    x[:, :, :4] = 0.5  # inside: free
    x[1, 2, 10, 3] += 0.3
    x[2, :, 5:] += 0.1
    feature = classifier.features(x)[:, 5]
    expected = -0.1 * feature + 90 * torch.tensor([0, 0.3**2 / 768, 0.1**2 * 11 / 16])
    torch.testing.assert_close(
        faithful_outside(raising(5, 0.1), X0, mask, 90)(network, x, Y), expected, rtol=0, atol=1e-5
    )


def test_the_gradient_is_that_of_feature_and_fidelity(classifier):
    network = Network(classifier)
    mask = torch.zeros(3, 1, 16, 16)
    mask[..., :8] = 1
    x = (X0 + 0.01).requires_grad_()
    (found,) = torch.autograd.grad(faithful_outside(raising(5, 0.1), X0, mask, 90)(network, x, Y).sum(), x)
    (of_feature,) = torch.autograd.grad(classifier.features(x)[:, 5].sum(), x)
    expected = -0.1 * of_feature + 90 * 2 * 0.01 / 768 * (1 - mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_feature_rises_and_the_rest_is_bit_equal(classifier, checkpoint, images_npz, tmp_path, capsys):
    out = tmp_path / "out.npz"
    with torch.no_grad():  # one that no image leaves at 0, where it has no gradient
        k = int(classifier.features(to_float(open_images(images_npz).read(0, 4))).amin(dim=0).argmax())
    words = ["--ckpt", checkpoint, "--input", images_npz, "--out", out, "--feature", k, "--rectangle", "2,3,6,8"]
    assert run(*words, "--eps", 3, "--step-size", 0.2, "--steps", 15, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["objective_after"] < summary["objective_before"]
    before, after = (open_images(path).read(0, 4) for path in (images_npz, out))
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:8, 3:11] = True
    assert torch.equal(before[..., ~inside], after[..., ~inside])
    assert not torch.equal(before[..., inside], after[..., inside])
    with torch.no_grad():
        rise = classifier.features(to_float(after))[:, k] - classifier.features(to_float(before))[:, k]
    assert (rise > 0).all()


def test_a_mask_file_says_where_and_pasting_can_be_left_out(checkpoint, images_npz, tmp_path, capsys):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["--ckpt", checkpoint, "--input", images_npz, "--feature", 0, "--mask", tmp_path / "mask.png"]
    settings = ["--eps", 3, "--step-size", 0.2, "--steps", 8]
    assert run(*words, *settings, "--out", tmp_path / "a.npz") == 0
    assert run(*words, *settings, "--out", tmp_path / "b.npz", "--paste", "false", "--fidelity", 0) == 0
    before, pasted, free = (open_images(tmp_path / name).read(0, 4) for name in ("images.npz", "a.npz", "b.npz"))
    assert torch.equal(before[..., :8], pasted[..., :8])
    assert not torch.equal(before[..., :8], free[..., :8])


def test_defaults_are_the_papers_at_224_pixels():
    large = TASK.defaults(224)
    assert (large.eps, large.step_size, large.steps, large.norm) == (70, 1, 140, "l2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--feature": "999"}, "feature: 999 is out of range; this classifier has "),
        ({"--feature": "-1"}, "feature: -1 is out of range"),
        ({"--feature": "wing"}, "feature: "),
        ({"--rectangle": "0,0,17,4"}, "rectangle: 0,0,17,4 does not lie in images of 16x16"),
        ({"--mask": "mask.png"}, "mask: give one of --mask and --rectangle, which say where to paint"),
        ({"--mask": "small.png", "--rectangle": None}, "small.png is 9x8, the images are 16x16; they must be equal"),
        ({"--rectangle": None}, "mask: give one of --mask and --rectangle"),
    ],
)
def test_bad_input_is_one_line(checkpoint, images_npz, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (9, 8), 255).save("small.png")
    flags = {"--ckpt": checkpoint, "--input": images_npz, "--out": "o.npz", "--feature": "3", "--rectangle": "0,0,4,4"}
    pairs = [pair for pair in (flags | change).items() if pair[1] is not None]
    assert run(*(word for pair in pairs for word in pair)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.npz").exists()


def test_the_range_of_features_is_told(classifier):
    count = classifier.head.in_features
    with pytest.raises(UserError, match=rf"{count} features \(0 to {count - 1}\)$"):
        check_feature(classifier, count)
