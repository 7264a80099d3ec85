"""Every training recipe, made tiny, trains."""

import math
from pathlib import Path

import pytest

from robust_models import load
from robust_models.runtime.config import RECIPES, read_recipe, resolve
from train.cli import TRAIN
from train.config import TrainConfig
from train.loop import train

TRAINING = sorted(path.name for path in RECIPES.glob("*.yaml") if "epochs:" in path.read_text())
TINY = {
    "device": "cpu",
    "precision": "fp32",
    "compile": "false",
    "epochs": "1",
    "batch_size": "16",
    "data.validation": "16",
    "data.class_names": "[]",
    "data.loader": "resident",
    "data.image_size": "null",
    "data.random_crop": "false",
    "validate.every_epochs": "1",
    "validate.steps": "1",
    "guard.images": "16",
}


def tiny(recipe: str, data: Path, out: Path, init: Path) -> TrainConfig:
    values = {"out": str(out), **read_recipe(recipe)}
    network = {"init": str(init)} if "init" in values else {"arch": "preact_resnet10_w16"}
    guard = {"guard.every_steps": "2"} if "guard" in values else {}
    energy = {"energy.start": "noise", "energy.judge": f"classifier:{init}"} if "energy" in values else {}
    return resolve(TrainConfig, values, {**TINY, **network, **guard, **energy, "data.path": str(data)})


def test_the_recipes_are_there():
    assert {"cifar_l2", "cifar_l2_fast", "cifar_linf", "cifar_l2_trades", "cifar_standard", "imagenet_l2"} < {
        name.removesuffix(".yaml") for name in TRAINING
    }
    assert "finetune_folder.yaml" in TRAINING


@pytest.mark.parametrize("recipe", TRAINING)
def test_a_recipe_made_tiny_trains(recipe, tmp_path, labelled_npz, checkpoint):
    config = tiny(recipe, labelled_npz, tmp_path / "run", checkpoint)
    summary = train(config)
    assert summary["steps"] == 5
    assert summary["validation"]["n"] == 16
    assert ("robust_accuracy" in summary["validation"]) == (config.attack.radius > 0)
    model = load(summary["checkpoint"])
    assert model.class_names == ("0", "1", "2")
    assert all(math.isfinite(p.sum().item()) for p in model.parameters())
    told = TRAIN.format_summary(summary).splitlines()
    unattacked = "noisy" if config.smoothing.sigma or config.noised else "clean"
    columns = ["step", "loss", "lr", "images/s", unattacked, "%", "robust", "%"]
    assert told[0].split()[: len(columns)] == columns
    assert ("made" in told[0]) == (config.objective.name == "energy")
    assert told[-2].endswith("best")


def test_the_headers_say_what_a_run_costs_and_scores():
    for recipe in TRAINING:
        header = [line for line in (RECIPES / recipe).read_text().splitlines() if line.startswith("#")]
        for word in ("Cost:", "Score"):
            assert any(word in line for line in header), f"{recipe}: no {word}"
