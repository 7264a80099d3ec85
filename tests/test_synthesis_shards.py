"""Synthesis tasks in shards: killed anywhere and resumed, by any number of ranks, each makes the same bytes."""

import itertools
import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import refine.synthesis.run
import refine.synthesis.tasks.counterfactual
import refine.synthesis.tasks.explain
from refine.cli import main
from refine.synthesis.inputs import read
from refine.work_folder import WorkFolder
from robust_models import open_images, to_float
from robust_models.class_seeds import ClassSeeds
from robust_models.images.record import record_path
from tests.test_distributed import finish, free_ports, start
from tests.test_generate import one_gaussian
from tests.test_refine_shards import Killed, everything, killed_before, leftovers
from tests.tiny import CLASSES, tiny_pixels

N = 150  # images: three blocks of the CPU's 64
FAMILY = {  # every task that makes images
    "generate": ["--num-images", N, "--sampler", "langevin"],
    "inpaint": ["--hole", 4],
    "superres": ["--factor", 2],
    "translate": ["--source-class", CLASSES[0], "--target-class", CLASSES[1]],
    "sketch": ["--target", CLASSES[2]],
    "paint": ["--feature", 1, "--rectangle", "0,0,4,4"],
    "invert": [],
    "explain": [],
    "counterfactual": ["--tries", 2],
}
TIMES = ("wall_s", "images_per_s")


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """tiny.safetensors, its seeds, and N images in in.npz."""
    seeds = ClassSeeds(CLASSES, tuple(one_gaussian(mean) for mean in (0.2, 0.5, 0.8)), 2, 16, "made up")
    seeds.save(tmp_path / "tiny.seeds.npz")
    pixels, labels = tiny_pixels(N)
    np.savez(tmp_path / "in.npz", arr_0=pixels, arr_1=labels)
    return tmp_path


def words(folder: Path, task: str, out: Path, *more: object) -> list[str]:
    given = ["--task", task, "--ckpt", folder / "tiny.safetensors", "--out", out, "--device", "cpu", "--json"]
    given += [] if task == "generate" else ["--input", folder / "in.npz"]
    given += [] if task == "explain" else ["--steps", 2, "--precision", "fp32"]
    return [str(word) for word in [*given, *FAMILY[task], *more]]


def figures(printed: str) -> dict:
    """The summary's, but for its times and places."""
    summary = json.loads(printed)
    return {name: value for name, value in summary.items() if name not in (*TIMES, "out", "manifest", "grid")}


def make(folder: Path, task: str, out: Path, *more: object, capsys) -> dict:
    assert main(words(folder, task, out, *more)) == 0
    return figures(capsys.readouterr().out)


ALL = """
import contextlib, io, json, os, sys
from refine.cli import main
commands = json.load(open(sys.argv[1]))
for port, words in commands:
    os.environ["MASTER_PORT"] = port  # the last meeting place may not be cleared yet
    assert main(words) == 0
"""


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_makes_the_bytes_and_figures_of_one(folder, capsys, world):
    grid = ["--grid", folder / "ranks.png", "--trajectory", folder / "ranks.gif"]
    commands = [words(folder, task, folder / f"{task}.npz", *(grid if task == "invert" else [])) for task in FAMILY]
    (folder / "commands.json").write_text(json.dumps(list(zip(free_ports(len(commands)), commands, strict=True))))
    ended = finish(start("-c", ALL, folder / "commands.json", world=world))
    assert [status for status, _, _ in ended] == [0] * world, ended
    assert [out for _, out, _ in ended[1:]] == [""] * (world - 1)
    assert [err for _, _, err in ended[1:]] == [""] * (world - 1)
    assert ended[0][2].count(f"(rank 0 of {world})") >= len(FAMILY)
    assert leftovers(folder) == []
    for task, printed in zip(FAMILY, ended[0][1].splitlines(), strict=True):
        alone = folder / "alone" / f"{task}.npz"
        grid = ["--grid", folder / "alone.png", "--trajectory", folder / "alone.gif"]
        told = make(folder, task, alone, *(grid if task == "invert" else []), capsys=capsys)
        told["trajectory"] = figures(printed).get("trajectory", told.get("trajectory"))
        assert {**figures(printed), "trajectory": told["trajectory"]} == told
        assert everything(folder / f"{task}.npz") == everything(alone)
    for suffix in ("png", "gif"):
        assert (folder / f"ranks.{suffix}").read_bytes() == (folder / f"alone.{suffix}").read_bytes()


@pytest.fixture
def small_blocks(monkeypatch):
    """Two images at once."""
    for module in (refine.synthesis.run, refine.synthesis.tasks.explain, refine.synthesis.tasks.counterfactual):
        monkeypatch.setattr(module, "block_size", lambda *_: 2)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("task", "kind"), [("generate", "npz"), ("superres", "folder"), ("explain", "npz"), ("counterfactual", "npz")]
)
def test_killed_at_any_commit_and_resumed_it_makes_the_same_bytes(folder, capsys, task, kind):
    more = ["--num-images", 3] if task == "generate" else ["--limit", 3]
    more += ["--overwrite"] if kind == "folder" else []
    undisturbed, before = folder / f"undisturbed.{kind}", folder / f"before.{kind}"
    told = make(folder, task, undisturbed, *more, capsys=capsys)
    if kind == "folder":  # what --overwrite is to replace
        make(folder, task, before, *more, "--eps", 1, capsys=capsys)
    for commit in itertools.count():
        out = folder / f"{commit}.{kind}"
        if kind == "folder":
            shutil.copytree(before, out)
            shutil.copy2(record_path(before), record_path(out))
        try:
            with killed_before(commit):
                main(words(folder, task, out, *more))
            break  # there is no such commit: the run came through
        except Killed:
            state = WorkFolder(out).path / "run.json"
            capsys.readouterr()
            if everything(undisturbed) == everything(out) and not state.exists():
                state.parent.rmdir()  # all was done but this
            else:
                assert make(folder, task, out, *more, capsys=capsys) == told
        assert everything(out) == everything(undisturbed)
        assert leftovers(folder) == []
    assert commit > 15


@pytest.mark.parametrize(("task", "first", "then"), [("generate", 3, 1), ("invert", 2, 3), ("explain", 1, 2)])
def test_killed_ranks_are_gone_on_with_by_any_number(folder, capsys, task, first, then):
    out, work, slow = folder / "out.npz", folder / "out.npz.work", [] if task == "explain" else ["--steps", 40]
    processes = start("-m", "refine", *words(folder, task, out, *slow), world=first)
    until = time.monotonic() + 120
    while not list(work.glob("shard-*.npy")):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.002)
    processes[-1].send_signal(signal.SIGKILL)
    ended = finish(processes)
    if first > 1:  # the other rank has noticed, and says so in a line
        status, printed, error = ended[0]
        assert (status, printed) == (1, "")
        assert "error: another rank of this job has ended, and with it this one (" in error
        assert "Traceback" not in error
    kept = {file: file.stat().st_mtime_ns for file in work.glob("shard-*.npy")}
    assert 0 < len(kept) < 4
    ended = finish(start("-m", "refine", *words(folder, task, out, *slow), world=then))
    assert [status for status, _, _ in ended] == [0] * then, ended
    assert figures(ended[0][1]) == make(folder, task, folder / "alone.npz", *slow, capsys=capsys)
    assert everything(out) == everything(folder / "alone.npz")
    assert leftovers(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generate", "superres", "explain"])
def test_a_dozen_kills_of_any_rank_at_any_moment_leave_no_trace(folder, capsys, task):
    pixels, labels = tiny_pixels(1500)
    np.savez(folder / "in.npz", arr_0=pixels, arr_1=labels)
    more = ["--num-images", 1500] if task == "generate" else []
    out, work, draws = folder / "out", folder / "out.work", random.Random(0)
    told = make(folder, task, folder / "alone", *more, capsys=capsys)
    kills, reached = 0, []
    while kills < 12:
        if out.exists() and not work.exists():  # it came through: from the start again
            shutil.rmtree(out)
        processes = start("-m", "refine", *words(folder, task, out, *more), world=draws.choice([1, 2, 3]))
        goal = len(list(work.glob("shard-*.npy"))) + draws.randrange(8)  # 0: while it starts
        while len(list(work.glob("shard-*.npy"))) < goal and all(process.poll() is None for process in processes):
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.05))
        draws.shuffle(processes)
        kills += processes[0].poll() is None
        for process in processes:  # torchrun ends the others, which may wait for the first one to join
            process.kill()
            time.sleep(draws.uniform(0, 1))
        finish(processes)
        reached.append(len(list(work.glob("shard-*.npy"))))
    assert len(set(reached)) > 3, reached  # the kills came at different moments
    if work.exists() or not out.exists():
        (status, printed, _), *_ = finish(start("-m", "refine", *words(folder, task, out, *more), world=2))
        assert (status, figures(printed)) == (0, told)
    assert everything(out) == everything(folder / "alone")
    assert leftovers(folder) == []


def stopped(folder: Path, task: str, out: Path, *more: object) -> None:
    """A run that died behind its first shard."""
    with pytest.raises(Killed), killed_before(4):
        main(words(folder, task, out, *more))
    assert [path.name for path in WorkFolder(out).path.glob("shard-*.npy")] == ["shard-00000.npy"]


@pytest.mark.usefixtures("small_blocks")
def test_ctrl_c_says_what_stands_and_the_same_command_goes_on(folder, capsys, monkeypatch):
    out, more = folder / "out.npz", ["--num-images", 7]
    original, made = refine.synthesis.run.synthesize_block, []

    def interrupted(*given, **named):
        made.append(original(*given, **named))
        if len(made) == 3:
            raise KeyboardInterrupt
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(refine.synthesis.run, "synthesize_block", interrupted)
        assert main(words(folder, "generate", out, *more)) == 130
    error = capsys.readouterr().err
    assert f"\nstopped: 2 finished shards are kept in {out}.work; the same command goes on from there\n" in error
    assert "go on with: bigroc refine --task generate --ckpt " in error
    figures_of = [make(folder, "generate", place, *more, capsys=capsys) for place in (out, folder / "whole.npz")]
    assert figures_of[0] == figures_of[1]
    assert everything(out) == everything(folder / "whole.npz")


@pytest.mark.usefixtures("small_blocks")
def test_an_unfinished_run_keeps_its_shards_when_the_blocks_are_others_now(folder, capsys, monkeypatch):
    more = ["--num-images", 7]
    stopped(folder, "generate", folder / "out.npz", *more)
    monkeypatch.setattr(refine.synthesis.run, "block_size", lambda *_: 5)
    seen = []
    original = refine.synthesis.run.synthesize_block

    def watched(network, source, ball, rows, *more, **named):
        seen.append(rows.tolist())
        return original(network, source, ball, rows, *more, **named)

    monkeypatch.setattr(refine.synthesis.run, "synthesize_block", watched)
    make(folder, "generate", folder / "out.npz", *more, capsys=capsys)
    assert seen == [[2, 3], [4, 5], [6, 6]]
    seen.clear()
    make(folder, "generate", folder / "whole.npz", *more, capsys=capsys)
    assert seen == [[0, 1, 2, 3, 4], [5, 6, 6, 6, 6]]


@pytest.mark.usefixtures("small_blocks")
def test_another_run_is_not_mixed_in_unless_nothing_of_it_is_finished(folder, capsys):
    out, more = folder / "out.npz", ["--num-images", 7]
    stopped(folder, "generate", out, *more)
    kept = everything(WorkFolder(out).path)
    capsys.readouterr()
    assert main(words(folder, "generate", out, *more, "--eps", 3)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds an unfinished run with another eps (None there, 3.0 now); repeat that run's command" in error
    assert everything(WorkFolder(out).path) == kept
    assert main(words(folder, "superres", out, "--limit", 3)) == 2
    assert "with another task (generate there, superres now)" in capsys.readouterr().err
    (WorkFolder(out).path / "shard-00000.npy").unlink()
    (WorkFolder(out).path / "shard-00000.jsonl").unlink()
    assert make(folder, "generate", out, *more, "--eps", 3, capsys=capsys)["eps"] == 3


@pytest.mark.parametrize(
    ("task", "more"), [("features", ["--out", "f.png"]), ("seeds", ["--data", "IN", "--out", "s.npz"])]
)
def test_what_runs_in_one_process_says_so(folder, capsys, monkeypatch, task, more):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = [] if task == "seeds" else ["--ckpt", folder / "tiny.safetensors", "--input", folder / "in.npz"]
    given += [str(word).replace("IN", str(folder / "in.npz")) for word in more]
    assert main(["--task", task, *map(str, given)]) == 2
    assert capsys.readouterr().err == f"error: task: {task} runs in one process; call it without torchrun\n"


def test_only_the_wanted_images_are_read(folder, monkeypatch):
    images = open_images(folder / "in.npz")
    asked, original = [], type(images).read

    def watched(self, start, stop):
        asked.append((start, stop))
        return original(self, start, stop)

    monkeypatch.setattr(type(images), "read", watched)
    for rows, expected in (
        ([5, 6, 7, 7, 7], [(5, 8)]),
        ([0, 70, 149], [(0, 1), (70, 71), (149, 150)]),
        ([9, 3, 4, 9], [(3, 5), (9, 10)]),
    ):
        asked.clear()
        found = read(images, torch.tensor(rows))
        assert asked == expected
        assert torch.equal(found, to_float(images.read(0, N))[rows])
