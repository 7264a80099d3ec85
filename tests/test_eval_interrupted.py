"""Studies and `robust --state` that are stopped, meet a full disk, or find another process at work."""

import errno
import fcntl
import json
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch

import eval.study.plan
from eval.cli import main
from eval.robust.seeded_pgd import SeededPGD
from eval.study.store import at_work
from robust_models import UserError, save
from robust_models.runtime.files import exclusive
from robust_models.runtime.signals import Interrupted
from tests.study import command, config, done, pretended, scores, study, write_inputs
from tests.tiny import tiny_classifier, tiny_pixels


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    write_inputs(tmp_path)
    monkeypatch.setattr(eval.study.plan, "run_cell", pretended)
    return tmp_path


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def failing_at(number: int, function: Callable, error: Callable) -> Callable:
    """The function, whose number-th call raises instead."""
    calls = iter(range(1, 10**9))

    def wrapped(*args, **named):
        if next(calls) == number:
            error()
        return function(*args, **named)

    return wrapped


# --------------------------------------------------------------------------------------------------------- a full disk

JOBS = 9  # of the tiny study
PLACES = {
    "its arrays": "eval.study.plan.run_cell",
    "its result": "eval.study.store.write_json",
    "the log": "eval.study.store.Place._log",
    "a lock": "eval.study.store.locked",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_full_disk_ends_a_study_in_one_line_and_the_same_command_ends_it(root, monkeypatch, capsys, place):
    with monkeypatch.context() as patch:
        patch.setattr(place, failing_at(4, resolve_name(place), no_room))
        assert command(root) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "room" in lines[0]
    _, results = study(config(root))
    _, whole = study(config(root, out=str(root / "undisturbed")))
    assert scores(results) == scores(whole)
    assert len(done(root / "out")) == len(set(done(root / "out")))


def terminate() -> None:
    raise Interrupted(signal.SIGTERM)


@pytest.mark.parametrize("stop", [lambda: interrupt(), terminate])
@pytest.mark.parametrize("cell", [1, 3, 5])
def test_a_stopped_study_says_what_is_done_and_the_command_to_go_on_with(root, monkeypatch, capsys, stop, cell):
    with monkeypatch.context() as patch:
        patch.setattr(eval.study.plan, "run_cell", failing_at(cell, pretended, stop))
        try:
            command(root)
        except (KeyboardInterrupt, SystemExit):
            pass
    err = capsys.readouterr().err
    before = len(done(root / "out"))
    assert f"stopped: {before} of {JOBS} jobs are done in {root}/out" in err
    assert f"go on with: bigroc study --config {root}/tiny.yaml" in err
    study(config(root))
    assert len(done(root / "out")) == len(set(done(root / "out"))) == JOBS


def test_another_error_of_a_job_is_still_its_own(root, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(eval.study.plan, "run_cell", failing_at(2, pretended, broken))
    summary, _ = study(config(root))
    assert [one["error"] for one in summary["failed"]] == ["OSError: [Errno 5] Input/output error"]


# ----------------------------------------------------------------------------------------------- what killed ones leave


LEFT = ["", "cells", "classifiers", "references", "images", "classifiers/abc"]


@pytest.mark.parametrize("folder", LEFT)
def test_what_a_killed_study_left_half_written_is_swept(root, folder):
    place = root / "out" / folder
    place.mkdir(parents=True)
    (place / ".x.npz.k3j2.partial").write_bytes(b"half")
    (place / "mine.partial").write_text("not ours")
    study(config(root))
    assert not (place / ".x.npz.k3j2.partial").exists()
    assert (place / "mine.partial").exists()


def test_it_stays_while_another_command_works_on_the_study(root):
    study(config(root))
    half = root / "out" / "cells" / ".x.npz.k3j2.partial"
    half.touch()
    with at_work(root / "out"):
        half.touch()
        study(config(root))
        assert half.exists()
    study(config(root))
    assert not half.exists()


def test_nothing_is_written_before_others_are_kept_from_sweeping(root, monkeypatch):
    """Another command that starts meanwhile, the first to have the lock, would remove it half written."""
    make, lock, written = tempfile.mkstemp, root / "out" / "claims" / "study.lock", {}

    def made(*args, **given):
        if lock.parents[1] in Path(given["dir"], "x").parents:
            written[given["prefix"]] = lock.exists() and not _is_free(lock)
        return make(*args, **given)

    monkeypatch.setattr(tempfile, "mkstemp", made)
    study(config(root))
    assert ".config.json." in written
    assert [name for name, held in written.items() if not held] == []


def _is_free(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# ------------------------------------------------------------------------------------------------------- robust --state


@pytest.fixture
def measured(tmp_path) -> list[str]:
    """The words of a command that attacks 12 images in batches of 3."""
    torch.manual_seed(0)
    model = tiny_classifier()
    save(model, tmp_path / "model.safetensors")
    pixels, _ = tiny_pixels(12, 0)
    with torch.no_grad():
        y = model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(1)
    np.savez(tmp_path / "test.npz", arr_0=pixels, arr_1=y.numpy())
    paths = f"--ckpt {tmp_path}/model.safetensors --data {tmp_path}/test.npz --state {tmp_path}/state.json"
    return f"robust {paths} --eps 0.05,0.1 --steps 2 --batch-size 3 --device cpu --json".split()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_what_stands_is_said_when_it_is_stopped_and_it_ends_as_if_it_had_not_been(measured, monkeypatch, capsys, batch):
    with monkeypatch.context() as patch:
        patch.setattr(SeededPGD, "__call__", failing_at(batch, SeededPGD.__call__, interrupt))
        try:
            status = main(measured)
        except (KeyboardInterrupt, SystemExit) as stop:
            status = getattr(stop, "code", 130)
    out, err = capsys.readouterr()
    assert (status, out) == (130, "")
    standing = {1: "1 of 3 passes over the images are done, and 0", 2: "1 of 3 passes over the images are done, and 3"}
    assert f"stopped: {standing.get(batch, '')}" in err
    assert f"kept in {measured[6]}; the same command goes on" in err
    state = Path(measured[6])
    (state.parent / f".{state.name}.half.partial").touch()
    assert main(measured) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert not list(state.parent.glob(".*.partial"))
    state.unlink()
    assert main(measured) == 0
    whole = json.loads(capsys.readouterr().out)
    for found in (resumed, whole):
        for timed in (found, *found["results"]):
            timed.pop("wall_s")
        found.pop("images_per_s")
    assert resumed == whole


def test_a_finished_measurement_run_again_says_so_and_attacks_nothing(measured, monkeypatch, capsys):
    assert main(measured) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(SeededPGD, "__call__", interrupt)
    assert main(measured) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["results"] == first["results"]
    assert "state: all is done" in err


def test_two_commands_on_one_state_are_one_too_many(measured, capsys):
    with exclusive(Path(measured[6])):
        assert main(measured) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"error: state: {measured[6]} is being written by another process (process ")
    assert err.endswith("choose another --state")


def test_a_full_disk_ends_it_in_one_line_and_what_was_kept_counts(measured, monkeypatch, capsys):
    def full(_self: object) -> None:
        raise UserError("state.json: could not be written (No space left on device); make room")

    with monkeypatch.context() as patch:
        patch.setattr("eval.robust.progress.StoredProgress.save", full)
        assert main(measured) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert main(measured) == 0


def test_without_a_state_it_says_how_to_keep_what_there_is(measured, monkeypatch, capsys):
    monkeypatch.setattr(SeededPGD, "__call__", failing_at(1, SeededPGD.__call__, interrupt))
    words = [*measured[:5], *measured[7:]]
    try:
        main(words)
    except (KeyboardInterrupt, SystemExit):
        pass
    assert "not kept: give --state" in capsys.readouterr().err
