"""Which precision each verb takes on which machine, and that it says so."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from eval.cli import main as evaluate
from eval.study.config import StudyConfig
from refine.cli import main as refine
from robust_models import Description, RobustClassifier
from robust_models.folding import folded
from robust_models.runtime.device import attack_loop, decide_precision
from tests.conftest import stand_on
from tests.tiny import tiny_classifier, tiny_pixels
from train.cli import main as train

CPU = torch.device("cpu")
HARDWARE = ("none", "avx512_bf16", "amx", "cuda")
TAKES_BF16 = {
    "attack": {"avx512_bf16", "amx", "cuda"},
    "unfolded attack": {"amx", "cuda"},
    "training": {"avx512_bf16", "amx", "cuda"},
    "measurement": set(),
}


@pytest.mark.parametrize("loop", TAKES_BF16)
@pytest.mark.parametrize("hardware", HARDWARE)
def test_auto_takes_bf16_only_where_it_pays(hardware, loop, monkeypatch):
    stand_on(hardware, monkeypatch)
    decision = decide_precision("auto", CPU, loop)
    assert decision.precision == ("bf16" if hardware in TAKES_BF16[loop] else "fp32")
    assert decision.reason.startswith("auto: ")
    for choice in ("fp32", "bf16"):  # what is asked for is taken on every machine
        is_default = (choice, loop) == ("fp32", "measurement")
        reason = "measurements are exact" if is_default else "as set"
        assert decide_precision(choice, CPU, loop).summary() == {"precision": choice, "precision_reason": reason}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "fp32 (auto: this CPU does not multiply bf16)"),
        ({"avx512_bf16": False, "amx_bf16": False}, "fp32 (auto: this CPU does not multiply bf16)"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16 (auto: this CPU multiplies it)"),
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16 (auto: this CPU multiplies it in AMX tiles)"),
        (None, "fp32 (auto: this CPU does not multiply bf16)"),  # releases of torch that cannot be asked
    ],
)
def test_what_a_cpu_says_of_itself(capabilities, expected, monkeypatch):
    monkeypatch.undo()  # of what BIGROC_TEST_BF16 asked for
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert str(decide_precision("auto", CPU, "attack")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_what_a_gpu_says_of_itself(capability, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert decide_precision("auto", torch.device("cuda"), "attack").precision == expected


class Winding(nn.Module):
    """A network whose path depends on its input, so that it cannot be traced and folded."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 16 * 16, 3))

    def forward(self, x):
        return self.layers(x) if x.sum() > 0 else self.layers(-x)


def classifier_of(network: nn.Module) -> RobustClassifier:
    return folded(RobustClassifier(network, Description("mine:net", ("a", "b", "c"), 16)))


def test_a_network_that_keeps_its_batch_norms_is_another_loop():
    unfolded, without_norms = classifier_of(Winding(nn.BatchNorm2d(3))), classifier_of(Winding())
    traced = folded(tiny_classifier())
    assert attack_loop([traced]) == attack_loop([without_norms]) == "attack"
    assert attack_loop([unfolded]) == attack_loop([traced, unfolded]) == "unfolded attack"


TRAIN = (
    "--config cifar_l2_small.yaml --epochs 1 --batch-size 16 --attack.steps 1 --data.validation 16 --device cpu "
    "--validate.steps 1 --compile false"  # compiling takes a minute
)
COMMANDS = {
    "refine": (refine, "--ckpt tiny.safetensors --input x.npz --out o.npz --eps 1 --steps 1", "attack"),
    "inpaint": (
        refine,
        "--task inpaint --ckpt tiny.safetensors --input x.npz --hole 4 --out o.npz --steps 1",
        "attack",
    ),
    "train": (train, f"{TRAIN} --arch preact_resnet10_w8 --data.path x.npz --out run", "training"),
    "robust": (
        evaluate,
        "robust --ckpt tiny.safetensors --data x.npz --steps 1 --eps 1 --precision auto",
        "measurement",
    ),
    "features": (
        refine,
        "--task features --ckpt tiny.safetensors --input x.npz --out f.png --top 2 --precision auto",
        "measurement",
    ),
}


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels, labels = tiny_pixels(48)
    np.savez("x.npz", arr_0=pixels, arr_1=labels)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_says_which_precision_it_took_and_why(name, here, each_machine, capsys):
    main, words, loop = COMMANDS[name]
    expected = decide_precision("auto", CPU, loop)
    assert main([*words.split(), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {key: summary[key] for key in expected.summary()} == expected.summary()
    manifest = here / "o.npz.manifest.jsonl"
    if manifest.exists():
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        assert rows
        assert {row["precision"] for row in rows} == {expected.precision}
    if name == "train":
        recorded = json.loads((here / "run" / "config.json").read_text())
        assert recorded["precision_reason"] == expected.reason


@pytest.mark.parametrize("name", ["refine", "inpaint", "train", "robust"])
def test_the_summary_in_words_has_it_too(name, here, each_machine, capsys):
    main, words, loop = COMMANDS[name]
    assert main(words.split()) == 0
    assert str(decide_precision("auto", CPU, loop)) in capsys.readouterr().out


def test_what_is_compared_is_fp32_unless_asked():
    from eval.robust.config import RobustConfig
    from refine.synthesis.tasks.features import FeaturesConfig

    for schema in (RobustConfig, StudyConfig, FeaturesConfig):
        assert schema.__dataclass_fields__["precision"].default.default == "fp32"
