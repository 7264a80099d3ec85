"""models evaluate: what is measured, by which commands, what of it is measured again, and the table it becomes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from bigroc.cli import main
from eval.cli import EVAL
from eval.leaderboard import run as module
from eval.leaderboard.config import EvaluateConfig
from eval.leaderboard.run import Measurement, run_evaluate
from eval.leaderboard.table import TABLES, Measured, card, leaderboard
from robust_models import save
from tests.tiny import CLASSES, tiny_classifier, tiny_pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two", "judge")):
        torch.manual_seed(seed)
        save(tiny_classifier("preact_resnet10_w8"), tmp_path / f"{name}.safetensors")
    for name, seed in (("test", 0), ("made", 1), ("other", 2)):
        pixels, labels = tiny_pixels(16, seed=seed)
        pixels = pixels // 2 if name == "made" else pixels
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=labels, class_names=np.array(CLASSES))
    return tmp_path


def config(root: Path, **changed) -> EvaluateConfig:
    values = {
        "models": f"{root / 'one.safetensors'},{root / 'two.safetensors'}",
        "out": root / "out",
        "data": str(root / "test.npz"),
        "ood": str(root / "other.npz"),
        "images": (str(root / "made.npz"),),
        "refine_eps": (0.5,),
        "threats": "l2:0.5,linf:4/255",
        "judge": f"classifier:{root / 'judge.safetensors'}",
        "device": "cpu",
        "parts": ("balls", "gradients", "gains"),
    }
    return EvaluateConfig(**{**values, **changed})


def test_each_figure_has_a_command_and_none_is_measured_twice(root, monkeypatch):
    first = run_evaluate(config(root))
    kept = json.loads((root / "out" / "_".join(("", *root.parts[1:], "one.safetensors")) / "balls.json").read_text())
    assert kept["found"]["n"] == 16
    words = shlex.split(kept["command"])
    assert words[:3] == ["bigroc", "eval", "robust"]
    assert EVAL([*words[2:], "--dry-run"]) == 0
    table = (root / "out" / "leaderboard.md").read_text()
    assert table == first["leaderboard"]
    assert [line for line in table.splitlines() if line.startswith("## ")] == [f"## {title}" for title, _ in TABLES]
    assert [line.count("`") for line in table.splitlines() if "one.safetensors" in line] == [2, 2, 2]
    for column in ("clean, %", "PGD-20, l2 0.5", "PGD-20, linf 4/255", "all balls", "calibration error, %"):
        assert column in table
    for column in ("AUROC, log-sum-exp", "gradients along the data", "made: distance in classifier:"):
        assert column in table
    cells = json.loads((root / "out" / "gains.json").read_text())["found"]["cells"]
    raw, refined = cells[0]["kid"], next(cell for cell in cells if cell["classifier"] == str(root / "one.safetensors"))
    assert f"{100 * refined['less_raw'] / raw:+.0f} (" in table
    monkeypatch.setattr(Measurement, "run", lambda self: pytest.fail(f"measured again: {self.command}"))
    assert run_evaluate(config(root)) == first
    save(tiny_classifier("preact_resnet10_w8"), root / "one.safetensors")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run_evaluate(config(root))


def test_the_study_of_gains_is_a_command_too(root, monkeypatch, capsys):
    measurement = module._gains(config(root))
    words = shlex.split(measurement.command)
    assert main([*words[1:], "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "# 3 cells" in printed
    assert str(root / "made.npz") in printed


def robust(share: float, **more) -> dict:
    result = {"norm": "l2", "eps": 0.5, "robust_accuracy": share, "interval": [share - 0.1, share + 0.1]}
    found = {"n": 10, "data": "d", "clean_accuracy": 0.9, "clean_interval": [0.8, 1.0], "results": [result], **more}
    return {"command": "bigroc eval robust", "found": found}


def test_the_most_robust_comes_first_and_gaps_are_marked():
    weak = Measured("weak", "0", {"balls": robust(0.9, worst_case={"robust_accuracy": 0.1, "interval": [0, 0.2]})})
    strong = Measured("strong", "1", {"autoattack": robust(0.6), "apgd": robust(0.61)})
    title, _, header, _, first, second, *rest = leaderboard([weak, strong]).splitlines()
    assert (title, rest) == ("## Clean and attacked", [])
    assert first.startswith("| `strong` | 90.0 (80.0 to 100.0) | 60.0 (50.0 to 70.0) |")
    assert second.startswith("| `weak`")
    assert header.count("|") == first.count("|") == second.count("|")
    assert "| - |" in second
    assert "bigroc eval robust\nbigroc eval robust" in card(strong)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o"], "models: none given"),
        (["nobody", "--out", "o"], "models: no file nobody"),
        (["cifar10-l2-small", "--out", "o", "--data", "bundled:none"], "no bundled file none.npz"),
        (["cifar10-l2-small", "--out", "o", "--parts", "balls,bells"], "parts"),
    ],
)
def test_bad_words_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["models", "evaluate", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
