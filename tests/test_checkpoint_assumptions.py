"""Whatever a file does not state is assumed, said once in one line with the flag that states it, and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigroc.cli import main as bigroc
from robust_models import NORMALIZERS, Description, RobustClassifier, load, save
from robust_models.architectures import build
from robust_models.checkpoints.flags import CheckpointFlags, split_checkpoints
from robust_models.checkpoints.load import format_assumptions
from robust_models.cli import main as models
from robust_models.datasets import load_dataset
from robust_models.inspection_by_accuracy import Comparison, choose_by_accuracy, correct_mask
from robust_models.runtime.distributed import _printed
from tests.tiny import CLASSES, tiny_pixels

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def nothing_said():
    _printed.clear()


def state_of(arch: str, classes: int = 10, **settings) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(arch, num_classes=classes, **settings).eval().state_dict()


def bare(path: Path, arch: str = "preact_resnet10_w8", classes: int = 10, **entries) -> Path:
    """A file of tensors without a word about them."""
    torch.save({**state_of(arch, classes), **entries}, path)
    return path


MEAN_AND_STD = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}


@pytest.mark.parametrize(
    ("arch", "classes", "entries", "given", "assumed"),
    [
        ("resnet10_w8", 10, {}, {}, {"normalize", "activation", "class_names", "image_size"}),
        ("resnet10_w8", 10, MEAN_AND_STD, {}, {"activation", "class_names", "image_size"}),
        ("resnet10_w8", 3, {}, {"normalize": "none"}, {"activation", "class_names", "image_size"}),
        ("cifar_resnet8", 3, {}, {"class_names": "abc"}, {"normalize", "activation", "image_size"}),
        ("wide_resnet_10_1", 3, {}, {"activation": "silu"}, {"arch", "normalize", "class_names", "image_size"}),
        ("preact_resnet10_w8", 3, {}, {}, {"arch", "normalize", "activation", "class_names", "image_size"}),
        ("torchvision:squeezenet1_1", 3, {}, {"image_size": 64}, {"normalize", "class_names"}),
    ],
)
def test_what_is_neither_stated_nor_given_is_assumed(arch, classes, entries, given, assumed, tmp_path, capsys):
    file = bare(tmp_path / "a.pt", arch, classes, **entries)
    model = load(file, **given)
    assert {*model.description.assumptions} == assumed
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for name in assumed:
        assert f"(--{name.replace('_', '-')})" in said
    load(file, **given)
    assert capsys.readouterr().err == ""  # once


def test_all_given_says_nothing(tmp_path, capsys):
    file = bare(tmp_path / "a.pt")
    flags = {"arch": "preact_resnet10_w8", "normalize": "cifar10", "activation": "silu", "image_size": 32}
    model = load(file, **flags, class_names="abcdefghij")
    assert model.description.assumptions == {}
    assert capsys.readouterr().err == ""
    CheckpointFlags(**flags, class_names="a,b,c,d,e,f,g,h,i,j").load(str(file))
    load("cifar10-l2-small")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("classes", "size", "names"),
    [(10, 32, "those of CIFAR-10"), (10, 64, "numbers, 0 to 9"), (7, 32, "numbers, 0 to 6")],
)
def test_class_names_are_never_assumed_in_silence(classes, size, names, tmp_path, capsys):
    load(bare(tmp_path / "svhn.pt", classes=classes), image_size=size)
    assert f"class names {names} (--class-names)" in capsys.readouterr().err


def test_the_assumptions_stay_with_the_converted_file_until_somebody_states_them(tmp_path, capsys):
    file, out = bare(tmp_path / "a.pt", "resnet10_w8"), tmp_path / "a.safetensors"
    assert models(["convert", str(file), str(out), "--device", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert load(out).description.assumptions == shown["assumptions"] == load(file).description.assumptions
    assert "normaliser none (--normalize)" in capsys.readouterr().err
    stated = load(out, normalize="imagenet", class_names="abcdefghij")
    assert {*stated.description.assumptions} == {"activation", "image_size"}
    save(stated, tmp_path / "b.safetensors")
    assert {*load(tmp_path / "b.safetensors").description.assumptions} == {"activation", "image_size"}


def test_control_characters_of_a_file_do_not_reach_the_terminal():
    assert format_assumptions({"norm\x1b[2J": "\x1b]0;x\x07"}).isprintable()


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0), ("7", 0)])
def test_of_several_ranks_the_first_says_it(rank, lines, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    load(bare(tmp_path / "a.pt"))
    assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize("verb", ["refine", "eval robust", "eval quality"])
def test_each_verb_says_the_line_once(verb, tmp_path, capsys):
    import eval.cli
    import refine.cli

    file = bare(tmp_path / "a.pt", "resnet10_w8")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    data = tmp_path / "x.npz"
    np.savez(data, arr_0=pixels, arr_1=np.arange(6))
    words = {
        "refine": ["--ckpt", file, "--input", data, "--out", tmp_path / "y.npz", "--eps", 1, "--steps", 1],
        "eval robust": ["robust", "--ckpt", file, "--data", data, "--eps", 0.5, "--steps", 1],
        "eval quality": ["quality", "--images", data, "--reference", data, "--features", f"classifier:{file}"],
    }[verb]
    main = refine.cli.main if verb == "refine" else eval.cli.main
    assert main([str(word) for word in (*words, "--device", "cpu", "--json")]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "not stated in the file, so assumed" in line]
    assert len(lines) == 1
    assert "normaliser none (--normalize)" in lines[0]
    assert '"normalize": "none"' in captured.out


# Readings compared by accuracy.


def masks(**right: int) -> dict[str, torch.Tensor]:
    """Of 1,000 images, the first so many are right."""
    return {name: torch.arange(1000) < count for name, count in right.items()}


@pytest.mark.parametrize(
    ("right", "assumed", "chosen", "ties"),
    [
        ({"none": 413, "cifar10": 918, "imagenet": 917}, "none", "cifar10", ["imagenet"]),
        ({"none": 413, "cifar10": 917, "imagenet": 918, "half": 845}, "none", "imagenet", ["cifar10"]),
        ({"none": 917, "cifar10": 918, "imagenet": 500}, "none", "none", ["none"]),
        ({"none": 918, "cifar10": 918, "imagenet": 918}, "none", "none", ["cifar10", "imagenet"]),
        ({"relu": 100, "silu": 900, "gelu": 100}, "relu", "silu", []),
        ({"relu": 918, "leaky_relu": 920}, "relu", "relu", ["relu"]),
    ],
)
def test_a_significantly_worse_reading_never_wins_and_ties_are_named(right, assumed, chosen, ties):
    comparison = Comparison("normalizer", masks(**right), assumed)
    assert comparison.chosen == chosen
    assert comparison.ties == ties
    assert comparison.is_decisive == (not ties)


@pytest.mark.parametrize(
    ("right", "usual", "chosen"),
    [
        ({"none": 413, "cifar10": 918, "imagenet": 917, "cifar100": 919}, "cifar10", "cifar10"),
        ({"none": 413, "cifar10": 918, "imagenet": 917, "cifar100": 919}, "imagenet", "imagenet"),
        ({"none": 413, "cifar10": 918, "imagenet": 917, "cifar100": 919}, None, "cifar100"),
        ({"none": 413, "cifar10": 600, "imagenet": 917, "cifar100": 919}, "cifar10", "cifar100"),
        ({"none": 918, "cifar10": 918, "imagenet": 917, "cifar100": 919}, "cifar10", "none"),
    ],
)
def test_of_normalisers_that_tie_the_one_usual_for_so_many_classes_is_taken(right, usual, chosen):
    assert Comparison("normalizer", masks(**right), "none", usual).chosen == chosen


@pytest.mark.parametrize("true", ["cifar10", "half", "std0.225"])
def test_the_normaliser_that_a_file_does_not_hold_is_found(true, tmp_path):
    torch.manual_seed(3)
    names = tuple("0123456789")
    description = Description("resnet10_w16", names, 32, normalizer=NORMALIZERS[true])
    model = RobustClassifier.from_description(description)
    x_u8 = torch.randint(0, 256, (400, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 32, 32).contiguous()
    x_u8 = (x_u8.float() + torch.randn(400, 3, 32, 32) * 8).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        model.train()(x_u8 / 255)
        model.eval()
        model.network.head.bias -= model(x_u8 / 255).mean(0)
        y = model(x_u8 / 255).argmax(1)
    torch.save(model.network.state_dict(), tmp_path / "a.pt")
    found, comparisons = choose_by_accuracy(load(tmp_path / "a.pt", activation="relu"), x_u8, y)
    assert comparisons[0].accuracies[true] == 1.0
    assert true in {comparisons[0].chosen, *comparisons[0].ties}
    assert comparisons[0].chosen != "none"
    assert "normalize" not in found.description.assumptions


@pytest.fixture(scope="module")
def exact_test_images(tmp_path_factory) -> Path:
    """The 1,195 images of CIFAR-10's test split that are exact here, as an .npz."""
    if not (SHARED / "cifar10").is_dir():
        pytest.skip("the shared CIFAR-10 is not here")
    labels = np.load(SHARED / "cifar10" / "labels.npz")
    sheet = np.asarray(Image.open(SHARED / "cifar10" / "test.webp").convert("RGB"))
    pixels = sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(10_000, 32, 32, 3)
    exact = labels["test_lossless"].astype(bool)
    assert exact.sum() == 1195
    file = tmp_path_factory.mktemp("cifar10") / "TEST.npz"
    np.savez(file, arr_0=pixels[exact], arr_1=labels["test"][exact].astype(np.int64))
    return file


def test_a_real_cifar_resnet_is_read_by_accuracy_and_converted_so(exact_test_images, tmp_path, capsys):
    file, out = SHARED / "checkpoints" / "resnet20-12fca82f.th", tmp_path / "resnet20.safetensors"
    words = ["convert", file, out, "--data", exact_test_images, "--limit", 1195, "--device", "cpu", "--json"]
    assert models([str(word) for word in words]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["arch"] == "cifar_resnet20"
    assert (seen["n"], seen["parameters"]) == (1195, 269_722)
    assert seen["clean_accuracy"] >= 0.91
    normalizers = {reading["field"]: reading for reading in seen["readings"]}["normalizer"]
    assert normalizers["chosen"] == "cifar10"  # of ten classes
    assert "imagenet" in {normalizers["best"], *normalizers["ties"]}
    assert seen["assumptions"].keys() == {"class_names", "image_size"}
    data = load_dataset(str(exact_test_images), "test")
    assert correct_mask(load(out), data.x_u8, data.y).float().mean() == pytest.approx(seen["clean_accuracy"])


@pytest.mark.parametrize(
    ("text", "files", "expected"),
    [
        ("a,b", [], ["a", "b"]),
        ("a, b.pt", [], ["a", "b.pt"]),
        ("a,b.pt", ["a,b.pt"], ["a,b.pt"]),
        ("x,a,b.pt,y", ["a,b.pt"], ["x", "a,b.pt", "y"]),
        ("a.pt,head=h.pt,b.pt", [], ["a.pt,head=h.pt", "b.pt"]),
        ("a.pt,head=h,1.pt,b.pt", ["h,1.pt"], ["a.pt,head=h,1.pt", "b.pt"]),
        ("a.pt,normalize=0.5,0.25,b", [], ["a.pt,normalize=0.5,0.25", "b"]),
        ("a.pt,normalize=.5,.5,.5,.2,.2,.2,image_size=64,b,normalize=cifar10", [],
         ["a.pt,normalize=.5,.5,.5,.2,.2,.2,image_size=64", "b,normalize=cifar10"]),
        ("a,,b", [], ["a", "", "b"]),
        ("x" * 300 + ",b", [], ["x" * 300, "b"]),
    ],
)  # fmt: skip
def test_a_list_of_classifiers_is_split_where_no_file_and_no_setting_has_the_comma(
    tmp_path, monkeypatch, text, files, expected
):
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / file).touch()
    assert split_checkpoints(text) == expected


LISTS = {  # commands that take a classifier with settings behind its name, alone or in a list
    "refine --input x.npz --out y.npz --eps 1 --steps 1 --ckpt {}": "{0},{1}",
    "refine --task superres --factor 2 --steps 1 --input x.npz --out z.npz --ckpt {}": "{0}",
    "eval robust --data x.npz --eps 0 --ckpt {}": "{0}",
    "eval quality --images x.npz --reference x.npz --cache none --metrics fid --features classifier:{}": "{0}",
    "models inspect {}": "{0}",
}


@pytest.mark.parametrize("command", LISTS)
def test_a_comma_in_a_name_and_settings_behind_it_work_in_every_command(
    tmp_path, monkeypatch, classifier, capsys, command
):
    monkeypatch.chdir(tmp_path)
    pixels, labels = tiny_pixels(6)
    np.savez("x.npz", arr_0=pixels, arr_1=labels)
    torch.save(classifier.network.state_dict(), "of 2020,best.pt")
    names = "of 2020,best.pt,normalize=0.5,0.25,class_names=names.txt,image_size=16"
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    value = LISTS[command].format(names, names.replace("0.25", "0.5"))
    words = [word.format(value) for word in command.split()]
    assert bigroc(words) == 0, capsys.readouterr().err
