"""eval.image_quality: the same numbers from arrays, tensors, image sets and files, as the command prints them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval import image_quality
from eval.cli import main
from robust_models import UserError, open_images
from tests.test_quality import Pooled
from tests.tiny import tiny_pixels


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """a.npz (60 images), b.npz (80), and the images of a in the folder a/."""
    monkeypatch.chdir(tmp_path)
    for name, n, seed in (("a", 60, 0), ("b", 80, 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=tiny_pixels(n, seed)[0])
    (tmp_path / "a").mkdir()
    for i, pixels in enumerate(tiny_pixels(60, 0)[0]):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i:03d}.png")
    return tmp_path


GIVEN = {
    "an array, channels last": lambda x: x,
    "an array, channels first": lambda x: x.transpose(0, 3, 1, 2),
    "a uint8 tensor": lambda x: torch.from_numpy(x).permute(0, 3, 1, 2),
    "a float tensor": lambda x: torch.from_numpy(x).permute(0, 3, 1, 2) / 255,
    "a float64 array": lambda x: x / 255,
    "an image set": lambda x: open_images("a.npz"),
    "a file": lambda x: Path("a.npz"),
    "a file's name": lambda x: "a.npz",
    "a folder": lambda x: "a",
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_whatever_holds_the_images_the_numbers_are_those_of_the_command(files, monkeypatch, capsys, given):
    names = ("fid", "kid", "prc", "is", "sfid")
    found = image_quality(given(tiny_pixels(60, 0)[0]), "b.npz", metrics=names, features=Pooled(), device="cpu")
    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: Pooled())
    words = "quality --images a.npz --reference b.npz --cache none --device cpu --json --metrics"
    assert main([*words.split(), ",".join(names)]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert found == {name: expected[name] for name in found}
    assert {"fid", "frechet", "kid", "precision", "recall", "inception_score", "sfid"} < set(found)
    assert (found["n_images"], found["n_reference"]) == (60, 80)


def test_a_classifiers_features_by_name_and_one_metric_alone(files):
    found = image_quality("a.npz", np.zeros((5, 16, 16, 3), np.uint8), features=Pooled())
    assert found["fid"] > 0
    x_u8 = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    named = image_quality(x_u8, x_u8, features="classifier:cifar10-standard-small", device="cpu")
    assert named["frechet"] == pytest.approx(0, abs=1e-6)
    assert "fid" not in named


def test_a_cache_is_used_where_one_is_given(files):
    features = Pooled()
    for _ in range(2):
        image_quality("a.npz", "b.npz", features=features, cache=files / "kept")
    assert features.seen == 140


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.zeros((4, 16, 16), np.uint8), {}, "images is uint8"),
        (np.full((4, 16, 16, 3), 2.0), {}, "images: values run from 2 to 2; expected floats in"),
        (torch.full((4, 3, 16, 16), torch.nan), {}, "images: image 0 holds NaN"),
        (np.zeros((4, 8, 8, 3), np.uint8), {}, "images: 8x8, but the reference has 16x16"),
        (np.zeros((1, 16, 16, 3), np.uint8), {}, "1 image; a Frechet distance needs at least 2"),
        ("absent", {}, "absent: no such file or folder"),
        ("a.npz", {"metrics": ("fid", "kids")}, "metrics: 'kids' is none of .* did you mean kid"),
        ("a.npz", {"metrics": "vendi", "intervals": 100}, "intervals: none for vendi; leave it out"),
        ("a.npz", {"per_class": True}, "per_class: images has no labels"),
    ],
)
def test_what_does_not_fit_is_one_line(files, images, settings, message):
    with pytest.raises(UserError, match=message):
        image_quality(images, "b.npz", features=Pooled(), **settings)


def test_without_a_reference_there_is_only_the_inception_score(files):
    assert set(image_quality("a.npz", metrics="is", features=Pooled())) >= {"inception_score", "n_images"}
    with pytest.raises(UserError, match="reference: needed by every metric but is"):
        image_quality("a.npz", features=Pooled())
