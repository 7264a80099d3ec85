"""A run that is stopped, doubled, repeated or made longer; a loader whose images or workers fail it."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import train.run
from robust_models import UserError, load
from robust_models.datasets import open_dataset
from robust_models.runtime.config import resolve
from robust_models.runtime.files import exclusive
from robust_models.runtime.signals import Interrupted, StopSignals, leaving_on_signals
from tests.test_signals import handles_signals
from tests.tiny import fill, loader_of, tiny_pixels
from train.cli import main
from train.config import TrainConfig
from train.loaders.base import dead_workers_reported
from train.report import read_metrics
from train.start import open_data
from train.state import load_state
from train.step import train_step

CPU = torch.device("cpu")
TINY = (
    "--config cifar_standard.yaml --arch preact_resnet10_w16 --device cpu --precision fp32 --batch-size 16 --epochs 2 "
    "--data.validation 16 --optimizer.schedule step"
)


STOPS = [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "Ctrl-C", 130)]


@pytest.fixture(autouse=True)
def _workers_end():
    yield
    for child in multiprocessing.active_children():
        child.join(60)
        assert child.exitcode is not None


@pytest.fixture
def words(labelled_npz, tmp_path):
    """A command of 2 epochs of 5 steps, without --out."""
    return [*TINY.split(), "--data.path", str(labelled_npz)]


@pytest.fixture
def folder(tmp_path):
    """48 PNG files of 16 pixels in three class folders."""
    pixels, labels = tiny_pixels(48)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "set" / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / f"class{label}" / f"{i}.png")
    return tmp_path / "set"


def state_of(folder: Path):
    state = load_state(folder)
    assert state is not None
    return state


def assert_equal_states(one: Path, other: Path) -> None:
    ours, theirs = state_of(one), state_of(other)
    for part in ("model", "ema"):
        assert all(torch.equal(value, getattr(theirs, part)[name]) for name, value in getattr(ours, part).items())


@pytest.mark.parametrize(
    ("number", "cause", "status"), [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "Ctrl-C", 130)]
)
@pytest.mark.parametrize("where", ["step", "validation", "start"])
def test_a_stopped_run_says_what_is_saved_and_how_to_go_on(
    words, tmp_path, monkeypatch, capsys, number, cause, status, where
):
    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        if where == "step":
            patch.setattr(train.run, "train_step", signalled(train_step, number, at_call=7))
        elif where == "validation":
            patch.setattr(train.run, "validate", signalled(train.run.validate, number, at_call=1))
        else:
            patch.setattr(train.run, "make_model", signalled(train.run.make_model, number, at_call=1))
        with pytest.raises(SystemExit) as left:
            main([*words, "--out", str(out)])
    assert left.value.code == status
    error = capsys.readouterr().err
    if where != "start":
        assert (
            f"{cause}: saved at step {7 if where == 'step' else 5} of 10; the same command goes on from there" in error
        )
    assert "go on with: bigroc train --config cifar_standard.yaml --arch preact_resnet10_w16" in error
    assert f"--out '{out}'" in error
    assert main([*words, "--out", str(out)]) == main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert_equal_states(out, tmp_path / "whole")


def signalled(function, number, *, at_call):
    """The function, during whose so manieth call the process gets a signal."""
    calls = []

    def inner(*args, **settings):
        calls.append(None)
        if len(calls) == at_call:
            signal.raise_signal(number)
        return function(*args, **settings)

    return inner


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(first, second):
    def patient():
        with StopSignals():
            signal.raise_signal(first)
            signal.raise_signal(second)
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=patient)
    process.start()
    process.join(60)
    assert process.exitcode == -second


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_handlers_are_as_before_and_without_saving_work_is_left_at_once(number, status):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with leaving_on_signals():
        with StopSignals() as stop:
            signal.raise_signal(number)
            with pytest.raises(Interrupted):
                stop.check()
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(number)
        assert left.value.code == status
    with StopSignals():
        pass
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.0, 4.0])
def test_a_process_signalled_at_any_moment_of_its_start_says_try_again(words, tmp_path, after_s):
    command = [sys.executable, "-m", "train", *words, "--epochs", "500", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not handles_signals(process):  # Python itself may still be starting
        time.sleep(0.01)
    time.sleep(after_s)
    process.terminate()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 75, error
    assert "Traceback" not in error


def test_a_folder_has_one_writer(words, tmp_path, capsys):
    with exclusive(tmp_path / "run"):
        assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert f"error: out: {tmp_path / 'run'} is being written by another process (process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, "--out", str(tmp_path / "run")]) == 0


def test_a_finished_run_again_says_so(words, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "already finished" not in capsys.readouterr().err
    before = (tmp_path / "run" / "state.pt").read_bytes()
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert f"{tmp_path / 'run'}: already finished, at step 10" in capsys.readouterr().err
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_a_finished_run_made_longer_is_the_longer_run(words, tmp_path):
    for epochs in ("1", "2", "4"):
        assert main([*words, "--epochs", epochs, "--out", str(tmp_path / "grown")]) == 0
    assert main([*words, "--epochs", "4", "--out", str(tmp_path / "whole")]) == 0
    assert state_of(tmp_path / "grown").progress.step == 20
    assert_equal_states(tmp_path / "grown", tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--optimizer.schedule one_cycle --epochs 3",
            r"schedule one_cycle is spread over the whole run, .*--init",
        ),
        ("--optimizer.schedule cosine --epochs 3", r"schedule cosine is spread over the whole run, .*--init"),
        ("--attack.eps {0:0,0.5:0.1} --epochs 3", r"attack.eps is spread over the whole run, .*--init"),
        ("--epochs 1", r"has 2, more than 1; choose another --out"),
        ("--epochs 3 --seed 1", r"holds a run with another epochs"),
    ],
)
def test_what_depends_on_the_length_of_the_run_cannot_be_made_longer(words, tmp_path, capsys, flags, message):
    out = ["--out", str(tmp_path / "run")]
    changed = [word.replace(":", ": ").replace(",", ", ") for word in flags.split()]
    kept = changed[:2] if len(changed) > 2 and "seed" not in flags else []
    assert main([*words, *kept, *out]) == 0
    capsys.readouterr()
    assert main([*words, *changed, *out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    if "--init" in message:  # what the line says to do is done, from the weights that are there
        advised = re.search(r"the same command with (--init \S+ --out) ANOTHER$", error.strip())
        assert advised, error
        another = tmp_path / "another"
        assert main([*words, *changed, *advised[1].split(), str(another)]) == 0
        recorded = json.loads((another / "config.json").read_text())["config"]
        assert (recorded["init"], recorded["epochs"]) == (str(tmp_path / "run" / "classifier.safetensors"), 3)
        assert (another / "classifier.safetensors").exists()


def broken(kind: str, file: Path) -> None:
    if kind == "cut off":
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "text":
        file.write_text("no image")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "deleted":
        file.unlink()


@pytest.mark.parametrize("kind", ["cut off", "text", "empty"])
def test_an_image_that_cannot_be_read_ends_a_streaming_run_in_one_line(folder, tmp_path, capfd, kind):
    broken(kind, sorted((folder / "class1").iterdir())[0])
    flags = "--data.loader stream --data.workers 2 --data.image-size 16 --data.validation 4 --epochs 10"
    command = [*TINY.split(), "--data.path", str(folder), *flags.split(), "--out", str(tmp_path / "run")]
    ended = subprocess.run(  # a process of its own, which its workers must not keep from ending
        [sys.executable, "-m", "train", *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    skipping = main([*command[:-1], str(tmp_path / "skipping"), "--data.on-error", "skip"])
    assert (ended.returncode, skipping) == (2, 0), ended.stderr
    for text, expected in ((ended.stderr, "error: "), (capfd.readouterr().err, "skipped: ")):
        lines = [line for line in text.replace("\r", "\n").splitlines() if line and "train:" not in line]
        assert lines
        assert all(line.startswith(expected) and str(folder) in line for line in lines), text


@pytest.mark.parametrize("kind", ["cut off", "deleted", "text"])
def test_with_skip_the_next_image_takes_the_place_in_every_loader(folder, kind, capfd):
    data = open_dataset(str(folder), "train", image_size=16)
    first = data.index[5]
    broken(kind, folder / data.store.files[first])
    settings = {"batch_size": 12, "seed": 5, "device": CPU, "on_error": "skip"}
    loaders = [loader_of("stream", data, workers=workers, **settings) for workers in (0, 1)]
    loaders.append(loader_of("resident", data, **settings))
    for step in (0, 1, 2, 3, 4):
        batches = [loader.batch(step) for loader in loaders]
        for x_u8, y in batches[1:]:
            assert torch.equal(x_u8, batches[0][0])
            assert torch.equal(y, batches[0][1])
    assert torch.equal(loaders[-1].x_u8[5], loaders[-1].x_u8[6])
    for loader in loaders:
        loader.close()
    assert f"{data.store.files[first]}" in capfd.readouterr().err


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("path", ["folder", "labelled_npz"])
def test_nothing_need_be_held_out(path, on_error, request, tmp_path):
    data = {"path": str(request.getfixturevalue(path)), "image_size": 8, "validation": 0, "on_error": on_error}
    trained_on, held_out = open_data(resolve(TrainConfig, {"out": str(tmp_path / "run"), "data": data}))
    assert len(trained_on) == (48 if path == "folder" else 96)
    assert held_out.x_u8.shape == (0, 3, 8, 8)


def test_where_nothing_can_be_read_skipping_ends(folder):
    data = open_dataset(str(folder), "train", image_size=16)
    shutil.rmtree(folder)
    loader = loader_of("stream", data, batch_size=12, seed=0, device=CPU, workers=0, on_error="skip")
    with pytest.raises(UserError, match="none of the 48 images can be read"):
        loader.batch(0)


def test_workers_outlive_a_signal_to_all_until_the_run_ends(folder):
    loader = loader_of("stream", open_dataset(str(folder), "train"), batch_size=12, seed=5, device=CPU, workers=1)
    loader.batch(0)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    for step in range(1, 12):
        loader.batch(step)
    assert worker.is_alive()
    loader.close()
    worker.terminate()
    worker.join(60)
    assert not worker.is_alive()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_killed_worker_ends_the_run_with_its_reason(folder, number):
    loader = loader_of("stream", open_dataset(str(folder), "train"), batch_size=12, seed=5, device=CPU, workers=1)
    loader.batch(0)
    (worker,) = multiprocessing.active_children()

    def go_on():
        with dead_workers_reported():
            os.kill(worker.pid, number)
            for step in range(1, 1000):
                loader.batch(step)
                time.sleep(0.01)

    with pytest.raises(UserError, match=r"data.loader: DataLoader worker .*; the last saved state is kept"):
        go_on()
    loader.close()


@pytest.mark.parametrize("free_kb", [0, 300, 1200, 2500])
def test_a_full_disk_costs_nothing_but_time(words, tmp_path, tiny_disk, capsys, free_kb):
    words += ["--save-minutes", "0", "--log-every", "1"]
    out, filler = tiny_disk / "run", fill(tiny_disk, free_kb=free_kb)
    assert main([*words, "--out", str(out)]) == 2
    error = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "make room and run the same command again" in error[0]
    filler.unlink()
    assert main([*words, "--out", str(out)]) == main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert_equal_states(out, tmp_path / "whole")
    ours, theirs = (load(folder / "classifier.safetensors").state_dict() for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (out, tmp_path / "whole")]
    assert [(row["step"], row["kind"]) for row in rows[0]] == [(row["step"], row["kind"]) for row in rows[1]]
