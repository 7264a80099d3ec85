"""`eval robust` on several ranks: the figures of one, one state for any number, and nobody waits for the dead."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.cli import main
from robust_models import Description, RobustClassifier, save
from tests.test_distributed import finish, free_ports, start
from tests.tiny import tiny_pixels

N, BATCH = 14, 4
CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
ATTACKS = {
    "pgd": "--eps 0.02,0.1 --restarts 2 --steps 4",
    "sheet": "--threats l2:0.1,linf:0.01 --steps 3 --calibration --sanity --corruptions C --ood O",
    "autoattack": "--eps 0.1 --attack autoattack",
    "advertorch": "--eps 0.1 --attack advertorch:L2PGDAttack --steps 3 --restarts 2",
    "foolbox": "--eps 0.1 --attack foolbox:L2PGD --steps 3",
}
LIBRARY = {"autoattack": "pyautoattack", "advertorch": "advertorch", "foolbox": "foolbox"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A classifier that is easily misled, images that it gets right, some corrupted, and some of another kind."""
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, 16)).eval()
    pixels = tiny_pixels(N)[0]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        model.head.bias -= model(x).mean(dim=0)  # random weights see one class everywhere
        y = model(x).argmax(1).numpy()
    save(model, tmp_path / "model.safetensors")
    np.savez(tmp_path / "test.npz", arr_0=pixels, arr_1=y)
    np.savez(tmp_path / "O.npz", arr_0=tiny_pixels(9, seed=1)[0])
    (tmp_path / "C").mkdir()
    np.save(tmp_path / "C" / "labels.npy", np.tile(y, 5))
    np.save(tmp_path / "C" / "fog.npy", np.concatenate([pixels // k for k in range(1, 6)]))
    return tmp_path


def words(folder: Path, attack: str, *more: object) -> list[str]:
    given = ["robust", "--ckpt", folder / "model.safetensors", "--data", folder / "test.npz", "--json"]
    places = {"C": str(folder / "C"), "O": str(folder / "O.npz")}
    chosen = [places.get(word, word) for word in ATTACKS[attack].split()]
    return [str(word) for word in [*given, "--device", "cpu", "--batch-size", BATCH, *chosen, *more]]


def figures(printed: str) -> dict:
    """All that the summary says, but for times."""

    def untimed(value):
        if isinstance(value, dict):
            return {name: untimed(one) for name, one in value.items() if name not in ("wall_s", "images_per_s")}
        return [untimed(one) for one in value] if isinstance(value, list) else value

    return untimed(json.loads(printed))


ALL = """
import json, os, sys
SHORTER
from eval.cli import main
for port, words in json.load(open(sys.argv[1])):
    os.environ["MASTER_PORT"] = port  # the last meeting place may not be cleared yet
    assert main(words) == 0
"""
SHORTER = """
try:
    import pyautoattack

    class Shorter(pyautoattack.AutoAttack):
        def _set_version(self, version="standard"):
            super()._set_version(version)
            self.apgd.n_iter = self.apgd_targeted.n_iter = 6
            self.fab.n_iter, self.square.n_queries = 2, 10

    pyautoattack.AutoAttack = Shorter
except ImportError:
    pass
"""


def test_any_number_of_ranks_finds_what_one_does(folder):
    """The one is a process too, so that all have the shorter AutoAttack."""
    attacks = [attack for attack in ATTACKS if attack not in LIBRARY or _is_here(LIBRARY[attack])]
    program, found = ALL.replace("SHORTER", SHORTER), []
    for ranks in (1, 2, 3):
        commands = [words(folder, attack) for attack in attacks]
        (folder / "commands.json").write_text(json.dumps(list(zip(free_ports(len(commands)), commands, strict=True))))
        ended = finish(start("-c", program, folder / "commands.json", world=ranks))
        assert [status for status, _, _ in ended] == [0] * ranks, ended
        assert [out for _, out, _ in ended[1:]] == [""] * (ranks - 1)
        assert not any("%|" in err for _, _, err in ended[1:])  # one progress bar
        found.append(dict(zip(attacks, map(figures, ended[0][1].splitlines()), strict=True)))
    assert found[0] == found[1] == found[2]
    shares = [result["robust_accuracy"] for one in found[0].values() for result in one["results"]]
    assert min(shares) < max(shares) <= 1  # the attacks attack


def _is_here(library: str) -> bool:
    from importlib.util import find_spec

    return find_spec(library) is not None


def kept(state: Path) -> list[dict]:
    return [{**stage, "wall_s": 0} for stage in json.loads(state.read_text())["stages"]]


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 2)])
def test_a_state_is_gone_on_with_by_another_number_of_ranks(folder, capsys, first, then):
    state, slow = folder / "state.json", ["--steps", 60, "--early-stop", "false"]
    given = words(folder, "pgd", "--state", state, *slow)
    processes = start("-m", "eval", *given, world=first)
    until = time.monotonic() + 120
    while not (state.exists() and len(kept(state)) > 1 and kept(state)[-1]["done"]):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.002)
    processes[-1].send_signal(signal.SIGKILL)
    ended = finish(processes)
    if first > 1:
        status, printed, error = ended[0]
        assert (status, printed) == (1, "")
        assert "error: another rank of this job has ended, and with it this one (" in error
        assert f"kept in {state}; the same command goes on" in error
        assert "Traceback" not in error
    assert len(kept(state)) < 5
    ended = finish(start("-m", "eval", *given, world=then))
    assert [status for status, _, _ in ended] == [0] * then, ended
    assert f"({state})" in ended[0][2]
    assert not any(error for _, _, error in ended[1:])
    found, resumed = kept(state), figures(ended[0][1])
    state.unlink()
    assert main(given) == 0
    assert resumed == figures(capsys.readouterr().out)
    assert found == kept(state)


def test_bad_input_of_one_rank_ends_all_of_them_in_one_line(folder):
    """The third batch's logits are not finite, which the third rank has."""
    program = """
import sys, torch
import eval.robust.stages as stages
judged = stages._judge
def spoilt(model, x_u8, y, index, stage):
    if 11 in index:
        stages.check_finite(torch.full((1, 2), torch.nan), torch.tensor([11]), stage.title)
    return judged(model, x_u8, y, index, stage)
stages._judge = spoilt
from eval.cli import main
sys.exit(main(sys.argv[1:]))
"""
    ended = finish(start("-c", program, *words(folder, "pgd"), world=3))
    assert [status for status, _, _ in ended] == [2, 2, 2], ended
    errors = [line for _, _, err in ended for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: model: the logits of image 11 are not finite (clean)")
