"""from bigroc import ...: the examples run, names are lazy and typed, train gives a classifier."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bigroc
import robust_models
from robust_models import RobustClassifier, UserError
from train.loop import train as run_recipe

ROOT = Path(__file__).parents[1]
TINY = {
    "arch": "preact_resnet10_w16",
    "epochs": 1,
    "batch_size": 32,
    "compile": False,
    "device": "cpu",
    "data.validation": 16,
    "data.class_names": ("airplane", "automobile", "bird"),
    "validate": {"steps": 1},
}
TYPED = """
from torch import Tensor
from bigroc import PGD, Refiner, image_quality, load, refine, robust_accuracy, train

model = load("cifar10-l2-small")
names: tuple[str, ...] = train("cifar_l2", epochs=1).class_names
share: float = robust_accuracy(model, "cifar10", eps=0.5).robust
score: float = image_quality("a", "b")["frechet"]

def refined(x: Tensor, y: Tensor) -> Tensor:
    x_adv: Tensor = PGD(eps=0.5, step_size=0.1, steps=7)(model, x, y)
    return Refiner(model, eps=1)(refine(model, x_adv, y, eps=1), y)
"""


def test_the_examples_of_the_module_run():
    torch.manual_seed(0)
    found = doctest.testmod(bigroc)
    assert found.attempted > 8
    assert not found.failed


@pytest.mark.parametrize("package", [bigroc, robust_models], ids=lambda package: package.__name__)
def test_lazy_names_are_those_that_type_checkers_see(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(package.__all__)
    for name, module in seen.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_importing_it_imports_no_network():
    words = [sys.executable, "-c", "import bigroc, sys; print('torch' in sys.modules, bigroc.load.__name__)"]
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split() == [
        "False",
        "load",
    ]


def test_train_gives_the_classifier_and_leaves_nothing(labelled_npz, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    changes = {**TINY, "data.path": str(labelled_npz)}
    model = bigroc.train("cifar_l2_small", attack={"eps": 0.25}, **changes)
    assert isinstance(model, RobustClassifier)
    assert not model.training
    assert model.class_names == ("airplane", "automobile", "bird")
    assert model.description.threat_model.eps == 0.25
    assert model.description.arch == "preact_resnet10_w16"  # and the rest is the recipe's
    assert model.description.activation == "silu"
    assert not list(tmp_path.glob("bigroc-train-*"))


def test_train_in_a_folder_gives_what_the_command_writes(labelled_npz, tmp_path, monkeypatch):
    fields = {**TINY, "data": {"path": str(labelled_npz)}, "attack": {"eps": 0}}
    ran = []
    monkeypatch.setattr("bigroc.training.run", lambda config: ran.append(config) or run_recipe(config))
    recipe = {name: value for name, value in fields.items() if "." not in name}
    dotted = {name: value for name, value in fields.items() if "." in name}
    model = bigroc.train(recipe, out=tmp_path / "run", **dotted)
    written = bigroc.load(tmp_path / "run" / "classifier.safetensors")
    assert (ran[0].out, ran[0].data.validation, ran[0].attack.eps) == (tmp_path / "run", 16, 0)
    for name, value in written.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("cifar_l2_smal", {}, "did you mean cifar_l2_small"),
        ("cifar_l2", {"epoch": 1}, "epoch: unknown key; did you mean epochs"),
        ("cifar_l2", {"attack.eps": -1}, "attack.eps: .*greater than or equal to 0; got -1"),
        ("cifar_l2", {"attack": {"epz": 1}}, "attack.epz: unknown key"),
        ({"arch": "preact_resnet10_w16"}, {"epochs": 0}, "epochs: .*got 0"),
    ],
)
def test_train_names_the_field_that_is_wrong(recipe, changes, message):
    with pytest.raises(UserError, match=message):
        bigroc.train(recipe, **changes)


def test_ranks_need_a_folder(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="out: the ranks of torchrun share a run folder"):
        bigroc.train("cifar_l2")


def test_a_users_file_is_type_checked(tmp_path):
    pytest.importorskip("pyright")
    (tmp_path / "user.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(TYPED.replace("epochs=1).class_names", "epochs=1).threat_models"))
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    for file, status in (("user.py", 0), ("wrong.py", 1)):
        ended = subprocess.run([*words, tmp_path / file], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == status, ended.stdout
    for package in ("robust_models", "train", "refine", "eval", "bigroc"):
        assert (ROOT / package / "py.typed").exists()
