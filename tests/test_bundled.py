"""bundled:NAME stands for an image set of the package wherever a path to images does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bigroc.cli import main
from robust_models import UserError, open_images
from robust_models.class_seeds import EMBEDDED, ClassSeeds
from robust_models.datasets import load_dataset
from robust_models.images.open import fingerprint
from robust_models.metrics import read_statistics
from robust_models.runtime.files import PRETRAINED, located

SMALL = "cifar10-ablation-l2-050"


def test_it_is_the_file_in_the_package():
    assert located("bundled:vae-cifar10") == located("bundled:vae-cifar10.npz") == PRETRAINED / "vae-cifar10.npz"
    assert located("vae-cifar10.npz") == Path("vae-cifar10.npz")
    file = PRETRAINED / "cifar10-test-500.npz"
    assert np.array_equal(open_images("bundled:cifar10-test-500").read(3, 9), open_images(file).read(3, 9))
    assert torch.equal(load_dataset("bundled:cifar10-test-500", "test").x_u8, load_dataset(str(file), "test").x_u8)
    stored = read_statistics("bundled:cifar10-train-statistics")
    assert stored is not None
    assert stored.n == 50_000
    assert fingerprint(Path("bundled:cifar10-test-500")) == fingerprint(file)
    assert ClassSeeds.load(Path("bundled:cifar10-seeds")).source == ClassSeeds.load(EMBEDDED).source


@pytest.mark.parametrize("opens", [open_images, read_statistics, lambda name: load_dataset(name, "test")])
def test_a_name_that_is_none_is_refused_with_those_there_are(opens):
    with pytest.raises(UserError, match=r"no bundled file none\.npz; there are .*vae-cifar10\.npz"):
        opens("bundled:none")


@pytest.mark.parametrize(
    "words",
    [
        "refine --ckpt MODEL --input IMAGES --limit 4 --steps 1 --eps 1 --out OUT.npz",
        "refine --ckpt MODEL --input IMAGES --limit 64 --eps auto --reference REAL --judge JUDGE --out OUT.npz",
        "refine --ckpt MODEL --input IMAGES --limit 4 --steps 1 --eps 1 --stop-distance REAL --out OUT.npz",
        "refine --task translate --ckpt MODEL --input REAL --limit 4 --steps 1 --target-class dog --out OUT.npz",
        "refine --task generate --ckpt MODEL --num-images 4 --steps 1 --start-from REAL --out OUT.npz",
        "eval robust --ckpt MODEL --data REAL --limit 20 --steps 1 --eps 0.5 --ood IMAGES",
        "eval gradients --ckpt MODEL --data REAL --reference REAL --limit 8",
        "eval statistics --images REAL --features JUDGE --out OUT.npz",
        "eval quality --images IMAGES --reference bundled:cifar10-train-statistics --features JUDGE --originals IMAGES",
        "eval certify --ckpt cifar10-smooth-025 --data REAL --limit 2 --n0 10 --n 10",
        "models inspect MODEL --data REAL",
    ],
)
def test_every_command_understands_it(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": SMALL, "JUDGE": "classifier:cifar10-standard-small"}
    places |= {"IMAGES": "bundled:vae-cifar10", "REAL": "bundled:cifar10-test-500", "OUT": "out"}
    for name, value in places.items():
        words = words.replace(name, value)
    assert main([*words.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert not [file.name for file in tmp_path.iterdir() if "bundled" in file.name]
