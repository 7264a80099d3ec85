"""Runs whose network cannot be compiled, or no longer, go on as if nobody had asked for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_models import UserError
from tests.test_train import tiny_config
from tests.tiny import tiny_classifier
from train.copies import Compiled
from train.loop import train as run
from train.state import load_state

CPU = torch.device("cpu")


class BreaksBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        raise RuntimeError("Triton is missing\nand a page about it")


class Breaking(nn.Module):
    """A compiled network that fails from a call on; its batch norms have seen the images by then."""

    def __init__(self, model: nn.Module, call: int, where: str) -> None:
        super().__init__()
        self.model, self.left, self.where = model, call, where

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        logits = self.model(x)
        if self.left > 0:
            return logits
        if self.where == "backward":
            return BreaksBackward.apply(logits)
        try:
            raise FileNotFoundError("[Errno 2] No such file: c7.so")
        except FileNotFoundError as error:
            raise RuntimeError("backend='inductor' raised:\nand a page about it") from error


def everything(out: Path) -> list[Tensor]:
    state = load_state(out)
    assert state is not None
    momenta = [values["momentum_buffer"] for values in state.optimizer["state"].values()]
    return [*state.model.values(), *state.ema.values(), *momenta]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("call", "where", "reason"),
    [
        (1, "forward", "FileNotFoundError: [Errno 2] No such file: c7.so"),  # the attack of the first step
        (3, "forward", "FileNotFoundError: [Errno 2] No such file: c7.so"),  # its descent
        (3, "backward", "RuntimeError: Triton is missing"),
        (8, "backward", "RuntimeError: Triton is missing"),  # of a later step
    ],
)
@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_a_step_that_fails_compiled_is_done_once_and_without(
    tmp_path, labelled_npz, monkeypatch, capsys, call, where, reason, awp
):
    fields = {"epochs": "1", "attack.fold": "false", "objective.awp": str(awp)}
    run(tiny_config(tmp_path / "plain", labelled_npz, **fields))
    capsys.readouterr()
    monkeypatch.setattr(torch, "compile", lambda model: Breaking(model, call, where))
    run(tiny_config(tmp_path / "run", labelled_npz, compile="true", **fields))
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "compil" in line]
    assert told == [
        f"compile: compiling failed ({reason}); going on without compiling, which changes results by rounding only"
    ]
    for found, expected in zip(everything(tmp_path / "run"), everything(tmp_path / "plain"), strict=True):
        assert torch.equal(found, expected)


def test_what_is_not_the_compilers_is_left_to_fail():
    model = tiny_classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def failing(error: BaseException, *, descend: bool = False):
        def step(network: nn.Module) -> None:
            network.train()
            if descend:
                optimizer.step()
            raise error

        return step

    for step, error, alone in (
        (failing(UserError("yours")), UserError("yours"), True),
        (
            failing(OSError("late"), descend=True),
            OSError("late"),
            True,
        ),  # a second optimizer step would be one too many
        (failing(OSError("one of many")), UserError("compile: .*one of many.*leave --compile away"), False),
        (failing(KeyboardInterrupt("asked")), KeyboardInterrupt("asked"), True),
    ):
        compiled = Compiled(model, optimizer, CPU)
        assert compiled.network is not model
        with pytest.raises(type(error), match=str(error)):
            compiled.run(step, alone=alone)
        assert compiled.network is not model


COMPILED_STEP = """
import sys, torch
from torch import nn
from train.copies import Compiled
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))
x = torch.randn(16, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step(network):
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()
Compiled(model, optimizer, torch.device("cpu")).run(step, alone=True)
print(float(sum(value.double().sum() for value in model.state_dict().values())))
"""


@pytest.mark.slow
def test_half_a_cache_of_the_compiler_is_one_line(tmp_path):
    def compiled() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", COMPILED_STEP],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )

    whole = compiled()
    assert "going on without" not in whole.stderr
    programs = list((tmp_path / "cache").rglob("*.so"))
    assert programs, "nothing was compiled"
    for program in programs:
        program.write_bytes(b"")  # as a kill leaves a file whose blocks were never written
    cut_off = compiled()
    assert "compile: compiling failed (" in cut_off.stderr
    assert "Traceback" not in cut_off.stderr
    assert float(cut_off.stdout) == pytest.approx(float(whole.stdout), abs=1e-5)
