"""Features of a classifier: reached through the resize, differentiable, counted, listed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from refine.cli import main
from refine.network import Network
from refine.synthesis.feature_statistics import FeatureStatistics
from refine.synthesis.tasks import features as listing
from refine.synthesis.tasks.features import check_feature
from robust_models import Description, RobustClassifier, UserError, open_images, to_float
from tests.tiny import CLASSES, tiny_pixels

pytestmark = pytest.mark.usefixtures("each_machine")

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_features_are_those_at_the_classifiers_own_size(classifier):
    expected = classifier.features(X)
    network = Network(classifier)
    assert torch.equal(network.features(X), expected)
    large = X.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(classifier.head(network.features(large)), network(large), rtol=0, atol=1e-5)
    assert not classifier.head._forward_pre_hooks


def test_the_gradient_flows_through_features_and_resize(classifier):
    """Against central differences, in float64, along a random direction."""
    network = Network(classifier.double())
    x = torch.rand(1, 3, 20, 24, dtype=torch.float64)
    direction = torch.randn(x.shape, dtype=torch.float64)

    def value(x):  # float64 all through: features() rounds to float32, which differences would show
        seen = []
        with_hook = classifier.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(x)
        with_hook.remove()
        return seen[0].flatten(1)[:, 3].sum()

    h = 1e-6
    expected = ((value(x + h * direction) - value(x - h * direction)) / (2 * h)).item()
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(network.features(x)[:, 3].sum(), x)
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("k", [-1, 128, 10**9])
def test_a_feature_out_of_range_is_told_with_the_range(classifier, k):
    count = classifier.head.in_features
    assert check_feature(classifier, count - 1) == count - 1
    with pytest.raises(UserError, match=rf"^feature: {k} is out of range; this classifier has {count} features \(0 to"):
        check_feature(classifier, k)


def without_head():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return RobustClassifier(network, Description("mine:net", ("a", "b", "c"), 16))


def test_a_classifier_without_a_linear_layer_is_told():
    with pytest.raises(UserError, match=r"^mine:net: no linear layer, so no features to take$"):
        check_feature(without_head(), 0)
    with pytest.raises(UserError, match="no linear layer"):
        Network(without_head()).features(X)


def counted(values, y, *, batch_size, classes=3, most=4):
    statistics = FeatureStatistics(values.shape[1], classes, most)
    for part, labels in zip(values.split(batch_size), y.split(batch_size), strict=True):
        statistics.update(part, labels)
    return statistics


@pytest.fixture
def values():
    return torch.randn(50, 6).round(decimals=1), torch.randint(0, 3, (50,))


def test_correlations_are_pearsons(values):
    x, y = values
    found = counted(x, y, batch_size=7)
    expected = [[np.corrcoef(x[:, k], (y == c).double())[0, 1] for k in range(6)] for c in range(3)]
    np.testing.assert_allclose(found.correlation(), expected, atol=1e-9)
    np.testing.assert_allclose(found.mean, x.double().mean(0), atol=1e-12)
    np.testing.assert_allclose(found.std, x.double().std(0, correction=0), atol=1e-12)


def test_what_never_changes_correlates_with_nothing():
    x = torch.randn(20, 2)
    x[:, 1] = 0.1
    found = counted(x, torch.ones(20, dtype=torch.int64), batch_size=6)
    assert found.correlation().abs().max() == 0  # one class only
    found = counted(x, torch.arange(20) % 3, batch_size=6)
    assert found.correlation()[:, 1].abs().max() == 0
    assert found.correlation()[:, 0].abs().min() > 0


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_the_strongest_images_do_not_depend_on_the_batches(values, batch_size):
    x, y = values
    found = counted(x, y, batch_size=batch_size)
    order = np.argsort(-x.numpy(), axis=0, kind="stable")[:4]  # of equal ones the first
    assert np.array_equal(found.images, order)
    assert np.array_equal(found.strongest, np.take_along_axis(x.numpy(), order, 0))


def run(*words):
    return main([str(word) for word in ["--task", "features", *words]])


def test_the_command_lists_what_excites_the_features(classifier, checkpoint, labelled_npz, tmp_path, capsys):
    out = tmp_path / "features.png"
    words = ["--ckpt", checkpoint, "--input", labelled_npz, "--out", out, "--feature", "5,2", "--images", 3]
    assert run(*words) == 0
    assert f"2 of {classifier.head.in_features} features" in capsys.readouterr().out
    told = json.loads(out.with_suffix(".json").read_text())
    assert [row["feature"] for row in told["features"]] == [5, 2]
    assert (told["n"], told["classes"], told["features_in_all"]) == (96, "given", classifier.head.in_features)
    images = open_images(labelled_npz)
    assert images.labels is not None
    with torch.no_grad():
        values = classifier.features(to_float(images.read(0, 96))).double().numpy()
    for row in told["features"]:
        seen = values[:, row["feature"]]
        assert [image["index"] for image in row["images"]] == np.argsort(-seen)[:3].tolist()
        assert row["images"][0]["activation"] == pytest.approx(seen.max(), abs=1e-5)
        assert row["images"][0]["source"] == f"{row['images'][0]['index']:06d}"
        assert row["mean"] == pytest.approx(seen.mean(), abs=1e-5)
        expected = {name: np.corrcoef(seen, images.labels == c)[0, 1] for c, name in enumerate(CLASSES)}
        assert row["correlation"] == pytest.approx(expected, abs=1e-3)
        assert list(row["correlation"].values()) == sorted(row["correlation"].values(), reverse=True)
    with Image.open(out) as picture:
        assert picture.width > 3 * 96
        assert picture.height > 2 * 96


def test_without_names_those_most_tied_to_each_class_are_listed(classifier, checkpoint, labelled_npz, tmp_path, capsys):
    pixels, _ = tiny_pixels(20)
    np.savez(tmp_path / "plain.npz", arr_0=pixels)
    for path, mode in ((tmp_path / "plain.npz", "pseudo"), (labelled_npz, "given")):
        assert run("--ckpt", checkpoint, "--input", path, "--out", tmp_path / "f.png", "--top", 7, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["classes"] == mode
        assert len({row["feature"] for row in told["features"]}) == 7
    images = open_images(labelled_npz)
    assert images.labels is not None
    with torch.no_grad():
        values = classifier.features(to_float(images.read(0, 96)))
    correlation = counted(values, torch.from_numpy(images.labels), batch_size=96).correlation()
    best, feature = correlation.max(dim=1)
    expected = list(dict.fromkeys(feature[best.argsort(descending=True)].tolist()))
    assert [row["feature"] for row in told["features"]][: len(expected)] == expected


def test_fewer_images_than_asked_for(checkpoint, tmp_path, capsys):
    np.savez(tmp_path / "two.npz", arr_0=tiny_pixels(2)[0])
    words = ["--ckpt", checkpoint, "--input", tmp_path / "two.npz", "--out", tmp_path / "f.png", "--top", 2, "--json"]
    assert run(*words) == 0
    assert [len(row["images"]) for row in json.loads(capsys.readouterr().out)["features"]] == [2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--feature": "3,999"}, "feature: 999 is out of range; this classifier has "),
        ({"--feature": "3;4"}, "feature: '3;4' is no list of indices; expected, for instance, 3,17"),
        ({"--out": "features.gif"}, "out: features.gif is a picture; let its name end in .png"),
        ({"--targets": "given"}, "plain.npz has no labels; pass --targets pseudo"),
        ({"--top": "0"}, "top: input should be greater than or equal to 1; got 0"),
    ],
)
def test_bad_input_is_one_line(checkpoint, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    np.savez("plain.npz", arr_0=tiny_pixels(2)[0])
    flags = {"--ckpt": checkpoint, "--input": "plain.npz", "--out": "f.png", **change}
    assert run(*(word for pair in flags.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.npz", "tiny.safetensors"]


def test_a_checkpoint_without_features_is_told(labelled_npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(listing.FeaturesConfig, "load", lambda self, name: without_head())
    assert run("--ckpt", "any", "--input", labelled_npz, "--out", tmp_path / "f.png") == 2
    assert capsys.readouterr().err == "error: mine:net: no linear layer, so no features to take\n"
