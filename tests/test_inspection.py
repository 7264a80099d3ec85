"""python -m robust_models: what is told of a checkpoint, what labelled images tell, and conversion."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_models import NORMALIZERS, Description, RobustClassifier, embedded_names, load
from robust_models.cli import main
from robust_models.images import to_float
from robust_models.inspection_by_accuracy import choose_by_accuracy
from tests.tiny import tiny_pixels


def foreign_file(path: Path, activation: str, *, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """A state dict under RobustBench's names for PreActResNet; images it classifies all right with that activation."""
    torch.manual_seed(1)
    description = Description("preact_resnet10_w16", tuple("0123456789"), 32, activation=activation)
    model = RobustClassifier.from_description(description).train()
    x_u8 = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        model(to_float(x_u8))  # batch norms that have seen something
        model.eval()
        logits = model(to_float(x_u8))
        model.network.head.bias -= logits.mean(0)  # so that every class occurs
        y = model(to_float(x_u8)).argmax(1)
    names = {"stem": "conv1", "pool.0": "bn", "head": "linear"}
    inner = {"preact.0": "bn1", "branch.0": "conv1", "branch.1": "bn2", "branch.3": "conv2", "shortcut": "shortcut.0"}
    state = {}
    for name, tensor in model.network.state_dict().items():
        module, _, last = name.rpartition(".")
        if module.startswith("blocks."):
            _, block, part = module.split(".", 2)
            module = f"layer{int(block) + 1}.0.{inner[part]}"
        state[f"{names.get(module, module)}.{last}"] = tensor
    torch.save({"state_dict": state, "epoch": 7, "optimizer": {"lr": 0.1}}, path)
    return x_u8, y


@pytest.fixture
def foreign(tmp_path: Path):
    file = tmp_path / "silu.pt"
    x_u8, y = foreign_file(file, "silu")
    np.savez(tmp_path / "data.npz", arr_0=x_u8.permute(0, 2, 3, 1).numpy(), arr_1=y.numpy())
    return file, tmp_path / "data.npz", x_u8, y


def inspected(*words: object, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main([str(word) for word in (*words, "--json", "--device", "cpu")]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_tells_what_was_read_assumed_and_ignored(foreign, capsys):
    file, *_ = foreign
    seen = inspected("inspect", file, capsys=capsys)
    assert (seen["arch"], seen["arch_from"]) == ("preact_resnet10_w16", "from the tensors' shapes")
    assert seen["layout"] == "state dict under state_dict"
    assert seen["metadata"] == {"epoch": 7}
    assert seen["ignored"] == ["optimizer"]
    assert seen["activation_from"].startswith("relu is assumed")
    assert seen["normalizer_from"] == "none found, none assumed"
    assert seen["parameters"] == sum(p.numel() for p in load(file).network.parameters())
    assert len(seen["sha256"]) == 64
    assert main(["inspect", str(file)]) == 0
    assert "ignored         optimizer" in capsys.readouterr().out


def test_labelled_images_tell_the_activation_and_the_normaliser(foreign, capsys):
    file, data, *_ = foreign
    seen = inspected("inspect", file, "--data", data, capsys=capsys)
    assert seen["activation"] == "silu"
    assert "by accuracy on 200 labelled images" in seen["activation_from"]
    assert seen["clean_accuracy"] == 1.0
    readings = {reading["field"]: reading for reading in seen["readings"]}
    assert readings["normalizer"]["accuracy"].keys() == NORMALIZERS.keys()
    assert readings["activation"]["accuracy"]["silu"] == 1.0


def test_what_was_given_is_not_tried(foreign, capsys):
    file, data, *_ = foreign
    seen = inspected(
        "inspect",
        file,
        "--data",
        data,
        "--arch",
        "preact_resnet10_w16",
        "--activation",
        "relu",
        "--normalize",
        "0.5,0.25",
        capsys=capsys,
    )
    assert seen["readings"] == []
    assert (seen["activation"], seen["activation_from"]) == ("relu", "as given")
    assert seen["normalizer"] == {"mean": [0.5] * 3, "std": [0.25] * 3}


def test_too_few_images_change_nothing(foreign):
    file, _, x_u8, y = foreign
    model, comparisons = choose_by_accuracy(load(file), x_u8[:3], y[:3])
    assert model.description.activation == "relu"
    assert not any(comparison.is_decisive for comparison in comparisons if comparison.best != "relu")


def test_convert_keeps_everything_and_the_logits(foreign, tmp_path, capsys):
    file, data, x_u8, _ = foreign
    out = tmp_path / "converted.safetensors"
    seen = inspected("convert", file, out, "--data", data, capsys=capsys)
    assert seen["out"] == str(out)
    ours = load(out)
    assert ours.description.activation == "silu"
    assert ours.description.recipe["source"]["told"] == {"epoch": 7}
    theirs = load(file, activation="silu")
    x = to_float(x_u8[:4])
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    again = inspected("inspect", out, capsys=capsys)
    assert again["layout"] == "state dict under state_dict"


def test_class_names_come_from_the_command_line_or_a_file(foreign, tmp_path, capsys):
    file, *_ = foreign
    names = [f"thing {i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert inspected("inspect", file, "--class-names", tmp_path / "names.txt", capsys=capsys)["classes"] == names
    assert inspected("inspect", file, "--class-names", ",".join(names), capsys=capsys)["classes"] == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nowhere.pt"], "ckpt: no file nowhere.pt"),
        (["inspect"], "the following arguments are required: FILE"),
        (["inspct", "x"], "inspct: no such command; did you mean inspect"),
        (["inspect", "FOREIGN", "--normalize", "1,2,3"], "normalize: '1,2,3' is none of none, cifar10, imagenet"),
        (["inspect", "FOREIGN", "--normalize", "0.5,0"], "normalize: '0.5,0'"),
        (["inspect", "FOREIGN", "--activation", "tanh"], "activation: 'tanh' is none of relu, silu, softplus"),
        (["inspect", "FOREIGN", "--class-names", "a,b,a"], "class_names: 'a' stands twice in a,b,a"),
        (["inspect", "FOREIGN", "--class-names", "a,b"], "head.weight is [10, 128], expected [2, 128]"),
        (["inspect", "FOREIGN", "--ema"], "has no averaged weights"),
        (["inspect", "FOREIGN", "--data", "TINY"], "images of 16 px; the classifier takes 32 px"),
        (["convert", "FOREIGN", "out.pt"], "does not end in .safetensors"),
        (["convert", "FOREIGN", "TAKEN"], "exists; choose another name or pass --overwrite"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message, foreign, tmp_path, capsys):
    pixels, labels = tiny_pixels(4)
    np.savez(tmp_path / "tiny.npz", arr_0=pixels, arr_1=labels)
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    places = {"FOREIGN": foreign[0], "TINY": tmp_path / "tiny.npz", "TAKEN": tmp_path / "taken.safetensors"}
    assert main([str(places.get(word, word)) for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"


def test_list_names_every_classifier_that_loads_by_name(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("cifar10-l2-small") for line in lines)
    assert any(line.startswith("madrylab-cifar10-l2-0.5") and "l2 eps 0.5" in line for line in lines)


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m robust_models list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(embedded_names()[0])
    assert done.stderr == ""
