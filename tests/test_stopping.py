"""Refinement that stops at an energy: each image by itself, on tensors, on sets, and from the record of a file."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from refine import Refiner, bigroc, class_means, together
from refine.cli import main
from refine.method import ClassMeans
from robust_models import UserError, load, save
from robust_models.attacks import cross_entropy, energy, negative_logit
from robust_models.classifier import Generation
from robust_models.threat import NORMS
from robust_models.views import Viewed
from tests.tiny import tiny_classifier, tiny_pixels

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def test_the_energies_are_those_of_the_joint_model():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    y = torch.tensor([1, 0])
    assert energy(logits) == pytest.approx([-np.log(np.exp([1, 2, -1]).sum()), -np.log(3)])
    assert torch.equal(energy(logits), energy(logits, y))
    assert negative_logit(logits, y).tolist() == [-2, 0]
    torch.testing.assert_close(cross_entropy(logits, y), negative_logit(logits, y) - energy(logits))


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "unconstrained"])
def test_an_image_takes_steps_until_its_energy_is_at_the_level(norm):
    model = tiny_classifier().requires_grad_(False)
    eps = {"linf": 0.05, "l1": 20.0, "l1.5": 4.0}.get(norm, 1.0)
    free = bigroc(eps, steps=6, norm=norm, loss="energy")
    level = float(energy(model(X)).median())
    stopped = bigroc(eps, steps=6, norm=norm, loss="energy", stop_energy=level)
    points = [point.x_adv for point in stopped.iterates(model, X, Y, X)]
    for before, after in itertools.pairwise(points):
        moves = energy(model(before)) > level
        assert torch.equal((before != after).flatten(1).any(1), moves)
    left = energy(model(X)) <= level
    assert 0 < left.sum() < len(X)
    assert torch.equal(points[-1][left], X[left])
    assert not torch.equal(free(model, X, Y)[left], X[left])


def test_an_images_stop_does_not_depend_on_the_others():
    model = tiny_classifier().requires_grad_(False)
    attack = bigroc(1.0, steps=4, stop_energy=float(energy(model(X)).quantile(0.5)))
    whole = attack(model, X, Y)
    for i in range(len(X)):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1])[0], whole[i], rtol=0, atol=1e-5)


def test_several_classifiers_stop_at_their_mean_energy():
    models = [tiny_classifier().requires_grad_(False) for _ in range(2)]
    mean = torch.stack([energy(model(X)) for model in models]).mean(0)
    level = float(mean.quantile(0.5))
    x_ref = Refiner(models, 1.0, stop_energy=level)(X, Y)
    assert torch.equal((x_ref == X).flatten(1).all(1), mean <= level)


def test_a_level_that_none_reaches_and_one_that_all_have():
    model = tiny_classifier().requires_grad_(False)
    assert torch.equal(bigroc(1.0, stop_energy=-1e9)(model, X, Y), bigroc(1.0)(model, X, Y))
    assert torch.equal(bigroc(1.0, stop_energy=1e9)(model, X, Y), X)


def test_an_image_takes_steps_until_it_is_confident_of_its_target():
    model = tiny_classifier().requires_grad_(False)

    def confidence(x):
        return model(x).softmax(1)[torch.arange(len(x)), Y]

    level = float(confidence(X).median())
    points = [point.x_adv for point in bigroc(1.0, steps=6, stop_confidence=level).iterates(model, X, Y, X)]
    for before, after in itertools.pairwise(points):
        assert torch.equal((before != after).flatten(1).any(1), confidence(before) < level)
    left = confidence(X) >= level
    assert 0 < left.sum() < len(X)
    assert torch.equal(Refiner(model, 1.0, steps=6, stop_confidence=level)(X, Y)[left], X[left])
    assert torch.equal(bigroc(1.0, stop_confidence=1.0)(model, X, Y), bigroc(1.0)(model, X, Y))
    with pytest.raises(UserError, match=r"stop_confidence: 1.5 is no probability above 0"):
        bigroc(1.0, stop_confidence=1.5)


def test_several_classifiers_stop_at_their_mean_confidence():
    models = [tiny_classifier().requires_grad_(False) for _ in range(2)]
    mean = torch.stack([model(X).softmax(1)[torch.arange(len(X)), Y] for model in models]).mean(0)
    level = float(mean.median())
    x_ref = Refiner(models, 1.0, stop_confidence=level)(X, Y)
    assert torch.equal((x_ref == X).flatten(1).all(1), mean >= level)


@pytest.fixture
def files(tmp_path):
    """A classifier that records its energies, one that does not, images, and real ones."""
    torch.manual_seed(0)
    model = tiny_classifier().requires_grad_(False)
    save(model, tmp_path / "plain.safetensors")
    with torch.no_grad():
        median = float(energy(model(X)).median())
    model.description = replace(model.description, generation=Generation(0.5, 9, median))
    save(model, tmp_path / "energy.safetensors")
    for name, n, seed in (("made", 10, 1), ("real", 21, 2)):
        pixels, labels = tiny_pixels(n, seed)
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=labels)
    return tmp_path


def refined(folder, name, capsys, *words) -> dict:
    flags = ["--ckpt", folder / "energy.safetensors", "--input", folder / "made.npz", "--out", folder / f"{name}.npz"]
    flags += ["--eps", 1, "--device", "cpu", "--precision", "fp32", "--json", *words]
    assert main([str(word) for word in flags]) == 0
    summary = json.loads(capsys.readouterr().out)
    with np.load(folder / f"{name}.npz") as arrays:
        return summary | {"pixels": arrays["arr_0"]}


def test_a_set_stops_at_what_is_recorded_measured_or_given(files, capsys):
    model = load(files / "energy.safetensors")
    recorded = refined(files, "a", capsys, "--stop-energy", "median")
    assert recorded["stop_energy"] == pytest.approx(model.description.generation.median_energy)
    given = refined(files, "b", capsys, f"--stop-energy={recorded['stop_energy']}")
    assert np.array_equal(given["pixels"], recorded["pixels"])
    measured = refined(files, "c", capsys, "--stop-energy", files / "real.npz")
    real = torch.from_numpy(tiny_pixels(21, 2)[0]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        assert measured["stop_energy"] == pytest.approx(float(energy(model(real)).median()), rel=1e-4)
    smaller = refined(files, "d", capsys, "--stop-energy", files / "real.npz", "--batch-size", 3, "--shard-size", 4)
    assert np.array_equal(smaller["pixels"], measured["pixels"])
    assert refined(files, "e", capsys)["stop_energy"] is None
    flags = [
        "--ckpt",
        files / "energy.safetensors",
        "--input",
        files / "made.npz",
        "--out",
        files / "f.npz",
        "--eps",
        1,
    ]
    assert main([*map(str, flags), "--stop-energy=-1.5", "--steps", "2", "--device", "cpu"]) == 0
    assert "l2 eps 1, 2 steps until an energy of -1.5, " in capsys.readouterr().out


def test_a_set_stops_at_the_confidence_of_real_images_or_at_one_that_is_given(files, capsys):
    model = load(files / "energy.safetensors")
    measured = refined(files, "a", capsys, "--stop-confidence", files / "real.npz")
    real = torch.from_numpy(tiny_pixels(21, 2)[0]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        median = float(model(real).softmax(1).max(1).values.median())
    assert measured["stop_confidence"] == pytest.approx(median, rel=1e-4)
    given = refined(files, "b", capsys, "--stop-confidence", measured["stop_confidence"])
    assert np.array_equal(given["pixels"], measured["pixels"])
    words = ["--ckpt", files / "energy.safetensors", "--input", files / "made.npz", "--eps", 1, "--device", "cpu"]
    assert main([*map(str, words), "--out", str(files / "c.npz"), "--stop-confidence", "0.5"]) == 0
    assert "7 steps until a confidence of 0.5, " in capsys.readouterr().out
    for value, message in (("2", "stop_confidence: 2"), ("nothing.npz", "stop_confidence: no number, and no images: ")):
        assert main([*map(str, words), "--out", str(files / "d.npz"), "--stop-confidence", value]) == 2
        assert message in capsys.readouterr().err


def test_the_refiner_takes_the_recorded_median(files):
    model = load(files / "energy.safetensors")
    level = model.description.generation.median_energy
    assert torch.equal(Refiner(model, 1.0, stop_energy="median")(X, Y), Refiner(model, 1.0, stop_energy=level)(X, Y))
    with pytest.raises(
        UserError, match=r"stop_energy: median, but the file of the preact_resnet10_w16 records no ener"
    ):
        Refiner(load(files / "plain.safetensors"), 1.0, stop_energy="median")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nothing.npz", "stop_energy: neither median nor a number, and no images: nothing.npz: no such file"),
        ("median", "stop_energy: median, but the file of the preact_resnet10_w16 records no energies"),
    ],
)
def test_what_is_no_level_is_one_line(files, capsys, value, message):
    flags = ["--ckpt", files / "plain.safetensors", "--input", files / "made.npz", "--out", files / "out.npz"]
    assert main([*map(str, flags), "--eps", "1", "--stop-energy", value]) == 2
    assert message in capsys.readouterr().err
    assert not list(files.glob("out*"))


def euclidean(models, near, x, y):
    """Mean over the classifiers of the distance from the mean of class y, in plain numbers."""
    pairs = zip(models, near.means, strict=True)
    return torch.stack([((model.features(x) - means[y]) ** 2).sum(1).sqrt() for model, means in pairs]).mean(0)


REAL = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def seeing_all_classes(seed):
    """A tiny classifier to which some of REAL are of every class: its logits are centred on them."""
    torch.manual_seed(seed)
    model = tiny_classifier().requires_grad_(False)
    model.head.bias -= model(REAL).mean(0)
    return model


@pytest.mark.parametrize("count", [1, 2])
def test_the_means_are_those_of_the_class_that_real_images_seem_to_be(count):
    models = [seeing_all_classes(seed) for seed in range(count)]
    guesses = torch.stack([model(REAL).softmax(1) for model in models]).mean(0).argmax(1)
    found = class_means(models, REAL)
    for model, means in zip(models, found.means, strict=True):
        features = model.features(REAL)
        by_hand = torch.stack([features[guesses == k].mean(0) for k in range(means.shape[0])])
        torch.testing.assert_close(means, by_hand)
    assert found.level == pytest.approx(float(euclidean(models, found, REAL, guesses).median()), rel=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_takes_steps_until_it_is_near_the_mean_of_its_class(count):
    models = [seeing_all_classes(seed) for seed in range(count)]
    near = class_means(models, REAL)
    near = replace(near, level=float(euclidean(models, near, X, Y).median()))
    attack = bigroc(1.0, steps=6, stop_distance=near)
    points = [point.x_adv for point in attack.iterates(together(models), X, Y, X)]
    for before, after in itertools.pairwise(points):
        moves = euclidean(models, near, before, Y) > near.level
        assert torch.equal((before != after).flatten(1).any(1), moves)
    left = euclidean(models, near, X, Y) <= near.level
    assert 0 < left.sum() < len(X)
    x_ref = Refiner(models, 1.0, steps=6, stop_distance=near)(X, Y)
    assert torch.equal((x_ref == X).flatten(1).all(1), left)
    free = replace(near, level=0.0)
    assert torch.equal(Refiner(models, 1.0, stop_distance=free)(X, Y), Refiner(models, 1.0)(X, Y))


def test_views_are_near_where_their_mean_features_are():
    model = Viewed(tiny_classifier().requires_grad_(False), 4)
    near = ClassMeans((model.features(REAL[:3]),), 0.0)
    near = replace(near, level=float(euclidean([model], near, X, Y).median()))
    x_ref = Refiner(model, 1.0, steps=2, stop_distance=near)(X, Y)
    assert torch.equal((x_ref == X).flatten(1).all(1), euclidean([model], near, X, Y) <= near.level)


def test_real_images_of_every_class_are_needed():
    model = seeing_all_classes(0)
    model.head.bias[1] -= 1e6
    with pytest.raises(UserError, match=r"stop_distance: of 60 real images none seems to be of class 1 \(1 of "):
        class_means(model, REAL)
    with pytest.raises(UserError, match="stop_distance: no classifier with features"):
        class_means(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)), REAL)


def test_a_set_stops_where_real_images_are(files, capsys):
    save(seeing_all_classes(0), files / "energy.safetensors")
    np.savez(files / "real.npz", arr_0=(REAL.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())
    real = torch.from_numpy(np.load(files / "real.npz")["arr_0"]).permute(0, 3, 1, 2).float() / 255
    model = load(files / "energy.safetensors")
    found = refined(files, "a", capsys, "--stop-distance", files / "real.npz")
    assert found["stop_distance"] == pytest.approx(class_means(model, real).level, rel=1e-4)
    smaller = refined(files, "b", capsys, "--stop-distance", files / "real.npz", "--batch-size", 3, "--shard-size", 4)
    assert np.array_equal(smaller["pixels"], found["pixels"])
    never = refined(files, "c", capsys)
    assert never["stop_distance"] is None
    assert not np.array_equal(never["pixels"], found["pixels"])
    words = ["--ckpt", files / "energy.safetensors", "--input", files / "made.npz", "--eps", 1, "--device", "cpu"]
    assert main([*map(str, words), "--out", str(files / "e.npz"), "--stop-distance", str(files / "real.npz")]) == 0
    assert "from the mean of the class" in capsys.readouterr().out
    assert main([*map(str, words), "--out", str(files / "d.npz"), "--stop-distance", "0.5"]) == 2
    assert "stop_distance: no images: 0.5: no such file" in capsys.readouterr().err
