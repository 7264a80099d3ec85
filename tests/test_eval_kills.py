"""Studies and `robust --state` in processes of their own: killed, asked to stop, on a disk that fills up; resumed."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from robust_models import save
from robust_models.runtime.signals import EXIT_STATUS
from tests.study import config, done, scores, study, values, write_inputs
from tests.tiny import fill, tiny_classifier, tiny_pixels

KILLS = 25
PATIENCE_S = 300
EPS = [0.1 * i for i in range(1, 9)]


def num_jobs(eps: Sequence[float]) -> int:
    """A reference's rows and its statistics, two classifiers, the images as they came, and refined by both."""
    return 2 + 2 + 1 + 2 * len(eps)


JOBS = num_jobs(EPS)


def start(words: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
    """python -m of the words, its standard error going into `log`."""
    argv = [sys.executable, "-m", *map(str, words)]
    with log.open("wb") as err:
        return subprocess.Popen(argv, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL, stderr=err)


def stop(process: subprocess.Popen[bytes], number: int) -> int:
    """Sends the signal; the status of the end."""
    process.send_signal(number)
    return process.wait(PATIENCE_S)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Until the condition holds, while the process runs."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "it ended before anything could be done to it"
        assert time.monotonic() < until
        time.sleep(0.002)


# ------------------------------------------------------------------------------------------------------------- a study


def study_words(root: Path, eps: Sequence[float] = EPS, **changed: Any) -> list[object]:
    recipe = root / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values(root, eps=list(eps), **changed)))
    return ["bigroc", "study", "--config", recipe]


def check_study(root: Path, out: Path, eps: Sequence[float] = EPS) -> None:
    """Every job done once, and every number that of a study nobody disturbed."""
    summary, results = study(config(root, eps=list(eps), out=str(out)))
    assert (summary["failed"], summary["missing"]) == ([], 0)
    _, whole = study(config(root, eps=list(eps), out=str(root / "undisturbed")))
    assert scores(results) == scores(whole)
    assert len(done(out)) >= len(set(done(out))) == num_jobs(eps)
    assert not list(out.rglob(".*.partial"))


def test_a_study_that_is_killed_twice_and_asked_to_stop_ends_with_equal_numbers(tmp_path):
    write_inputs(tmp_path)
    words, out, log = study_words(tmp_path), tmp_path / "out", tmp_path / "err"
    for number, jobs in ((signal.SIGKILL, 2), (signal.SIGTERM, 7), (signal.SIGKILL, 12)):
        process = start(words, log)
        wait_for(lambda jobs=jobs: len(done(out)) >= jobs, process)
        assert stop(process, number) == EXIT_STATUS.get(number, -number)
        if number == signal.SIGTERM:
            stopped, go_on = log.read_text().splitlines()[-2:]
            assert stopped == f"stopped: {len(done(out))} of {JOBS} jobs are done in {out}"
            assert go_on == f"go on with: bigroc study --config {words[-1]}"
        assert len(done(out)) < JOBS
    assert start(words, log).wait(PATIENCE_S) == 0
    check_study(tmp_path, out)


@pytest.mark.slow
def test_a_study_survives_25_kills(tmp_path):
    write_inputs(tmp_path)
    many = [0.01 * i for i in range(1, 101)]
    words, out, log = study_words(tmp_path, many), tmp_path / "out", tmp_path / "err"
    draws, reached = random.Random(0), []
    for kill in range(KILLS):
        more = draws.randrange(6)  # jobs; 0: while it starts
        goal = len(done(out)) + more
        process = start(words, log)
        wait_for(lambda goal=goal: len(done(out)) >= goal, process)
        time.sleep(draws.uniform(0, 0.3 if more else 4))
        number = signal.SIGTERM if kill % 5 == 4 else signal.SIGKILL
        assert stop(process, number) in (-number, EXIT_STATUS.get(number))
        reached.append(len(done(out)))
    assert reached == sorted(reached)
    assert len(set(reached)) > KILLS / 2, reached  # many came in the middle of work
    assert start(words, log).wait(PATIENCE_S) == 0
    check_study(tmp_path, out, many)
    print(f"{KILLS} kills; jobs that were done after each: {reached}")


# ------------------------------------------------------------------------------------------------------- robust --state


def robust_words(root: Path, state: Path) -> list[object]:
    """The words of a command that attacks images in 16 batches and more."""
    torch.manual_seed(0)
    model = tiny_classifier()
    save(model, root / "model.safetensors")
    pixels, _ = tiny_pixels(32, 0)
    with torch.no_grad():
        y = model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(1)
    np.savez(root / "test.npz", arr_0=pixels, arr_1=y.numpy())
    paths = ["--ckpt", root / "model.safetensors", "--data", root / "test.npz", "--state", state]
    effort = "--eps 0.002,0.004 --steps 15 --batch-size 4 --device cpu --json".split()
    return ["eval", "robust", *paths, *effort]


def batches_done(state: Path) -> int:
    stages = json.loads(state.read_text())["stages"] if state.exists() else []
    return sum(-(-stage["done"] // 4) for stage in stages)


def kept(state: Path) -> list[dict[str, Any]]:
    """What a state holds but for its times."""
    return [{**stage, "wall_s": 0} for stage in json.loads(state.read_text())["stages"]]


def check_state(words: list[object], state: Path, log: Path) -> None:
    """What the state holds in the end is what the command finds when nobody disturbs it."""
    found = kept(state)
    state.unlink()
    assert start(words, log).wait(PATIENCE_S) == 0
    assert found == kept(state)
    assert not list(state.parent.glob(".*.partial"))


def test_a_measurement_that_is_killed_and_asked_to_stop_ends_with_equal_numbers(tmp_path):
    state, log = tmp_path / "state.json", tmp_path / "err"
    words = robust_words(tmp_path, state)
    for number, batches in ((signal.SIGKILL, 9), (signal.SIGTERM, 12), (signal.SIGKILL, 15)):
        process = start(words, log)
        wait_for(lambda batches=batches: batches_done(state) >= batches, process)
        assert stop(process, number) == EXIT_STATUS.get(number, -number)
        if number == signal.SIGTERM:
            stopped, go_on = log.read_text().splitlines()[-2:]
            assert "stopped: 1 of 3 passes over the images are done, and" in stopped
            assert stopped.endswith(f"kept in {state}; the same command goes on")
            assert go_on == f"go on with: {shlex.join(['bigroc', *map(str, words)])}"
        assert batches_done(state) < 24
    assert start(words, log).wait(PATIENCE_S) == 0
    check_state(words, state, log)


# -------------------------------------------------------------------------------------------------- a disk that is full


def check_one_line(log: Path) -> None:
    lines = log.read_text().replace("\r", "\n").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert "room" in errors[0]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("free_kb", [0, 40, 120])
def test_a_study_on_a_full_disk_ends_in_one_line_and_goes_on(tmp_path, tiny_disk, free_kb):
    write_inputs(tmp_path)
    out, log = tiny_disk / "out", tmp_path / "err"
    words = study_words(tmp_path, out=str(out))
    filler = fill(tiny_disk, free_kb=free_kb)
    assert start(words, log).wait(PATIENCE_S) == 2
    check_one_line(log)
    assert len(set(done(out))) < JOBS
    filler.unlink()
    check_study(tmp_path, out)


@pytest.mark.parametrize("blocks", [0, 1])  # the lock takes one
def test_a_measurement_on_a_full_disk_ends_in_one_line_and_goes_on(tmp_path, tiny_disk, blocks):
    state, log = tiny_disk / "state.json", tmp_path / "err"
    words = robust_words(tmp_path, state)
    filler = fill(tiny_disk, free_kb=blocks * os.statvfs(tiny_disk).f_frsize // 1024)
    assert start(words, log).wait(PATIENCE_S) == 2
    check_one_line(log)
    filler.unlink()
    assert start(words, log).wait(PATIENCE_S) == 0
    check_state(words, state, log)
