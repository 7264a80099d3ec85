"""Training runs that are killed at random moments, as a cluster kills them."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_models import load
from tests.test_train_ranks import numbers, recipe, state_of
from tests.tiny import tiny_pixels
from train.loop import train
from train.report import read_metrics

KILLS = 25
STEPS = 400
# What takes its start from a process that has torch already starts in no time.
PROCESSES = multiprocessing.get_context("forkserver")


def life(config, seconds: float | None = None) -> float:
    """A process that trains, killed after so many seconds; the time that it lived. AssertionError where it ended."""
    process = PROCESSES.Process(target=train, args=(config,))
    started = time.monotonic()
    process.start()
    process.join(seconds)
    lived = time.monotonic() - started
    process.kill()
    process.join()
    assert (process.exitcode == 0) if seconds is None else (process.exitcode != 0), "the run ended by itself"
    return lived


@pytest.mark.slow
def test_a_run_killed_25_times_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    pixels, labels = tiny_pixels(48)
    np.savez(tmp_path / "labelled.npz", arr_0=pixels, arr_1=labels)
    changed = {
        "activation": "relu",
        "batch_size": 8,
        "epochs": STEPS // 4,
        "save_minutes": 0.002,
        "data": {"path": str(tmp_path / "labelled.npz"), "validation": 16},
        "guard": {"every_steps": 6, "images": 8},
        "validate": {"steps": 1, "every_epochs": 3, "show": 2},
    }
    PROCESSES.set_forkserver_preload(["train.loop"])
    whole, killed = (recipe(tmp_path, name, **changed) for name in ("whole", "killed"))
    life(whole, 1.0)  # starts the server of processes
    whole_s = life(whole)
    start_s = life(whole)  # of a run that has nothing left to do
    print(f"whole {whole_s:.1f} s, start {start_s:.1f} s")

    rng, reached = random.Random(0), []
    for _ in range(KILLS):
        starting, working = rng.uniform(0, start_s), start_s + rng.uniform(0, 0.8 * (whole_s - start_s) / KILLS)
        life(killed, starting if rng.random() < 0.2 else working)
        states = sorted(killed.out.glob("state*.pt"))
        reached.append(state_of(killed.out).progress.step if states else 0)
    assert reached == sorted(reached)
    assert len(set(reached)) > KILLS / 4, reached  # many kills came in the middle of work
    life(killed)

    ours, theirs = state_of(whole.out), state_of(killed.out)
    assert ours.progress.step == STEPS
    for name in ("model", "ema"):
        for key, value in getattr(ours, name).items():
            assert torch.equal(value, getattr(theirs, name)[key]), key
    for number, entry in ours.optimizer["state"].items():
        assert torch.equal(entry["momentum_buffer"], theirs.optimizer["state"][number]["momentum_buffer"])
    best, best_killed = (load(config.out / "classifier.safetensors").state_dict() for config in (whole, killed))
    assert all(torch.equal(value, best_killed[name]) for name, value in best.items())
    rows = [read_metrics(config.out / "metrics.jsonl") for config in (whole, killed)]
    assert [(row["kind"], numbers(row)) for row in rows[0]] == [(row["kind"], numbers(row)) for row in rows[1]]
    assert not list(killed.out.glob(".*.partial"))
    print(f"{KILLS} kills; steps of the states that they left: {reached}")


SELF_DESTRUCTING = """
import os, signal, sys
from pathlib import Path
import train.run
from tests.test_train_ranks import recipe
from train.loop import train as run
from train.step import train_step

def fatal(*args, step, **rest):
    if (step, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (3, "1", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    first_steps.append(step)
    return train_step(*args, step=step, **rest)

first_steps = []
train.run.train_step = fatal
root = Path(sys.argv[1])
run(recipe(root, "two", save_minutes=0))
if os.environ["RANK"] == "0":
    (root / "restarts").write_text(os.environ["TORCHELASTIC_RESTART_COUNT"] + " " + str(first_steps[0]))
"""


@pytest.mark.slow
def test_torchrun_starts_ranks_again_after_one_was_killed_and_they_go_on(tmp_path):
    pixels, labels = tiny_pixels(95)
    np.savez(tmp_path / "labelled.npz", arr_0=pixels, arr_1=labels)
    script = tmp_path / "rank.py"
    script.write_text(SELF_DESTRUCTING)
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 --monitor-interval 0.2".split()
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, *words, script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "restarts").read_text() == "1 3"
    train(recipe(tmp_path, "one", save_minutes=0))
    one, two = (state_of(tmp_path / name) for name in ("one", "two"))
    for key, value in one.model.items():
        torch.testing.assert_close(two.model[key], value, rtol=1e-5, atol=1e-5)
