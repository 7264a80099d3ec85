"""How `train --init` reads a checkpoint: what the file does not state is given, or assumed and said."""

import json

import pytest
import torch

from robust_models import UserError, load
from robust_models.architectures import build
from robust_models.runtime.config import resolve
from robust_models.runtime.distributed import _printed
from train.cli import main
from train.config import TrainConfig
from train.start import make_model

CLASSES = ("red", "green", "blue")
SIZE = 16


@pytest.fixture(autouse=True)
def nothing_said():
    _printed.clear()


@pytest.fixture
def foreign(tmp_path):
    """Somebody's file with weights, and their average, of a network of 3 classes; it says nothing of them."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(build("resnet10_w8", num_classes=3).state_dict())
    torch.save({"state_dict": states[0], "state_dict_ema": states[1]}, tmp_path / "foreign.pt")
    return str(tmp_path / "foreign.pt")


def config(checkpoint, **flags) -> TrainConfig:
    values = {"out": "run", "init": checkpoint, "device": "cpu"}
    return resolve(TrainConfig, values, {name: str(value) for name, value in flags.items()})


def logits(model) -> torch.Tensor:
    x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)


READINGS = [
    ({"ema": True}, True),
    ({"normalize": "cifar10"}, True),
    ({"normalize": "0.4,0.2"}, True),
    ({"normalize": "0.4,0.5,0.6,0.2,0.2,0.3"}, True),
    ({"activation": "silu"}, True),
    ({"activation": "gelu", "ema": True, "normalize": "imagenet"}, True),
    ({"arch": "resnet10_w8"}, False),
    ({"class_names": "red,green,blue"}, False),
    ({"image_size": 64}, False),
]


@pytest.mark.parametrize(("reading", "differs"), READINGS)
def test_init_is_read_as_load_would_read_it(foreign, reading, differs):
    model = make_model(
        config(foreign, **{f"init_reading.{name}": value for name, value in reading.items()}), CLASSES, SIZE
    )
    settings = {name: value.split(",") if name == "class_names" else value for name, value in reading.items()}
    assert torch.equal(logits(model), logits(load(foreign, **settings, quiet=True)))
    assert torch.equal(logits(model), logits(load(foreign, quiet=True))) != differs
    assert model.description.class_names == CLASSES
    assert model.description.image_size == SIZE
    assert not {*reading} & {*model.description.recipe.get("init_assumed", {})}
    assert model.description.assumptions == {}


@pytest.mark.parametrize(
    ("name", "value"), [("arch", "resnet10_w8"), ("activation", "silu"), ("normalize", "cifar100")]
)
def test_what_names_a_fresh_network_reads_init_too(foreign, name, value):
    one = make_model(config(foreign, **{name: value}), CLASSES, SIZE)
    other = make_model(config(foreign, **{f"init_reading.{name}": value}), CLASSES, SIZE)
    both = make_model(config(foreign, **{name: value, f"init_reading.{name}": value}), CLASSES, SIZE)
    assert torch.equal(logits(one), logits(other))
    assert torch.equal(logits(one), logits(both))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"init": "null", "init_reading.ema": True}, "init_reading: has nothing to read without --init CHECKPOINT"),
        ({"init": "null", "init_reading.image_size": 8}, "init_reading: has nothing to read without --init"),
        ({"activation": "relu", "init_reading.activation": "silu"}, "activation: relu, but init_reading.activation is"),
        (
            {"normalize": "none", "init_reading.normalize": "half"},
            "normalize: none, but init_reading.normalize is",
        ),
        ({"arch": "resnet18", "init_reading.arch": "resnet34"}, "arch: resnet18, but init_reading.arch is resnet34"),
        ({"init_reading.image_size": 0}, "init_reading.image_size"),
        ({"init_reading.emma": True}, "init_reading.emma"),
    ],
)
def test_a_reading_that_cannot_be_meant_is_refused(foreign, flags, message):
    with pytest.raises(UserError, match=message):
        config(foreign, **flags)


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ("--init-reading.activation rely", "init_reading.activation: 'rely'"),
        ("--init-reading.normalize cifar", "init_reading.normalize: 'cifar'"),
        ("--init-reading.arch resnet51", "init_reading.arch: 'resnet51'"),
    ],
)
def test_a_dry_run_checks_it(foreign, capsys, flags, field):
    words = ["--config", "finetune_folder.yaml", "--init", foreign, *flags.split(), "--dry-run"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert field in error


def test_what_is_assumed_is_said_once_and_stands_in_the_summary_not_in_the_classifier(
    foreign, labelled_npz, tmp_path, capsys
):
    words = ["--config", "cifar_standard.yaml", "--init", foreign, "--arch", "resnet10_w8", "--device", "cpu"]
    words += [
        "--data.path",
        str(labelled_npz),
        "--data.validation",
        "8",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--batch-size", "16", "--init-reading.activation", "relu"]
    words += ["--data.class-names", "[red, green, blue]"]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["assumptions"] == {"normalize": "none"}
    assert printed.err.count("not stated in the file, so assumed: ") == 1
    assert "normaliser none (--init-reading.normalize)" in printed.err
    assert "(--init-reading.class-names)" in printed.err
    assert load(summary["checkpoint"]).description.assumptions == {}
    assert "assumed" not in capsys.readouterr().err
