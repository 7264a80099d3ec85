"""What refine and the synthesis tasks write over, and what they never do: nothing is lost that no run had made."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from refine import bigroc
from refine.cli import main
from refine.refine_batch import BatchRefiner, NotFinite
from refine.work_folder import standing
from robust_models import open_images, save
from robust_models.images.record import record_path
from robust_models.runtime.files import exclusive
from tests.tiny import tiny_pixels

COMMANDS = {
    "refine": ["--eps", "1", "--steps", "1"],
    "superres": ["--task", "superres", "--factor", "2", "--steps", "1"],
    "invert": ["--task", "invert", "--steps", "1"],
}
commands = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def folder(tmp_path):
    """Four images in two class folders."""
    for i, pixels in enumerate(tiny_pixels(4)[0]):
        place = tmp_path / "in" / ("bird" if i % 2 else "airplane")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "in"


@pytest.fixture
def run(checkpoint, folder, tmp_path, capsys):
    def act(command, *more, out=tmp_path / "out"):
        words = [*COMMANDS[command], "--ckpt", checkpoint, "--input", folder, "--out", out, *more]
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err.rsplit("\r", 1)[-1].strip().rsplit("\n", 1)[-1]

    return act


def everything(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@commands
def test_a_finished_run_is_not_run_again(run, command, tmp_path):
    status, first, _ = run(command)
    assert status == 0
    before = everything(tmp_path)
    status, again, _ = run(command)
    assert (status, again) == (0, f"already done, with the same settings:\n{first}")
    assert everything(tmp_path) == before
    status, _, error = run(command, "--steps", 2)
    assert status == 2
    assert "exists, made with another steps (1 there, 2 now); choose another place, or pass --overwrite" in error
    assert everything(tmp_path) == before
    assert run(command, "--steps", 2, "--overwrite")[0] == 0
    assert run(command, "--overwrite")[0] == 0
    assert {name for name in everything(tmp_path) if name.suffix != ".json"} == {
        name for name in before if name.suffix != ".json"
    }


def add_notes(out):
    (out / "notes.txt").write_text("mine")


def add_hidden_file(out):
    (out / ".notes").write_text("mine")


def add_deep_file(out):
    (out / "bird" / "more").mkdir(exist_ok=True, parents=True)
    (out / "bird" / "more" / "x.png").write_bytes(b"mine")


def add_link(out):
    (out / "elsewhere").symlink_to("/tmp")


def change_an_image(out):
    file = next(out.rglob("*.png"))
    file.write_bytes(file.read_bytes() + b"mine")


def remove_an_image(out):
    next(out.rglob("*.png")).unlink()


@commands
@pytest.mark.parametrize(
    "change", [add_notes, add_hidden_file, add_deep_file, add_link, change_an_image, remove_an_image]
)
def test_a_result_that_has_changed_is_not_replaced(run, command, change, tmp_path):
    assert run(command)[0] == 0
    change(tmp_path / "out")
    before = everything(tmp_path)
    for more in ([], ["--overwrite"]):
        status, _, error = run(command, *more)
        assert status == 2
        assert "out: " in error
        assert "has changed since a run made it" in error
        assert everything(tmp_path) == before


def folder_of_others(out):
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def empty_folder(out):
    out.mkdir()


def result_without_its_record(out):
    folder_of_others(out)
    out.with_name("out.manifest.jsonl").write_text("{}\n")


@commands
@pytest.mark.parametrize("make", [folder_of_others, empty_folder, result_without_its_record])
def test_what_no_run_made_is_not_replaced(run, command, make, tmp_path):
    make(tmp_path / "out")
    before = everything(tmp_path)
    status, _, error = run(command, "--overwrite")
    assert status == 2
    assert "was not made by a run of this program (no out.run.json beside it) and is not replaced" in error
    assert everything(tmp_path) == before


def link(out):
    out.with_name("place").mkdir()
    out.symlink_to(out.with_name("place"))


def link_to_nothing(out):
    out.symlink_to(out.with_name("nowhere"))


@commands
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link, "is a link to"),
        (link_to_nothing, "is a link to"),
        (os.mkfifo, "is neither a file nor a folder"),
    ],
)
def test_links_and_devices_are_not_replaced(run, command, make, message, tmp_path):
    make(tmp_path / "out")
    status, _, error = run(command, "--overwrite")
    assert status == 2
    assert message in error
    assert os.path.lexists(tmp_path / "out")
    assert not (tmp_path / "out").is_file()


def test_the_checkpoint_in_use_survives_an_overwriting_run(run, checkpoint, tmp_path):
    place = tmp_path / "project"
    place.mkdir()
    shutil.copy(checkpoint, place / "classifier.safetensors")
    status, _, error = run("refine", "--ckpt", place / "classifier.safetensors", "--overwrite", out=place)
    assert status == 2
    assert "was not made by a run" in error
    assert (place / "classifier.safetensors").exists()


@commands
def test_a_second_writer_is_one_line(run, command, tmp_path):
    with exclusive(tmp_path / "out"):
        status, _, error = run(command)
    assert status == 2
    assert "out is being written by another process" in error
    assert run(command)[0] == 0


@commands
def test_a_manifest_of_something_else_is_kept(run, command, tmp_path):
    (tmp_path / "out.manifest.jsonl").write_text("mine\n")
    status, _, error = run(command)
    assert status == 2
    assert "out.manifest.jsonl is of something else; move it away" in error
    assert (tmp_path / "out.manifest.jsonl").read_text() == "mine\n"


def test_two_processes_at_once_end_well(checkpoint, folder, tmp_path):
    words = ["--eps", "1", "--steps", "20", "--ckpt", checkpoint, "--input", folder, "--out", tmp_path / "out"]
    both = [
        subprocess.Popen([sys.executable, "-m", "refine", *map(str, words)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2])  # the second one found the result, or the first one at work
    assert all("Traceback" not in error for error in errors)
    assert len(open_images(tmp_path / "out")) == 4
    assert record_path(tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_photographs_of_any_size_come_back_in_their_own(run, folder, tmp_path, checkpoint):
    rng = np.random.default_rng(0)
    sizes = {"a.png": (24, 40), "b.jpg": (16, 16), "sub/c.png": (40, 24), "sub/d.png": (24, 40), "z.webp": (9, 7)}
    shutil.rmtree(folder)
    for name, (height, width) in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
    out, grid = tmp_path / "out", tmp_path / "grid.png"
    status, printed, _ = run("refine", "--targets", "balanced", "--grid", grid, "--trajectory", tmp_path / "way.gif")
    assert status == 0
    assert "5 images refined" in printed
    for name, size in sizes.items():
        with Image.open(next(out.rglob(name.rsplit(".", 1)[0] + ".*"))) as image:
            assert (image.height, image.width) == size
    rows = [json.loads(line) for line in (tmp_path / "out.manifest.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [name.rsplit(".", 1)[0] for name in sizes]
    assert [row.get("size") for row in rows] == [None if size == (16, 16) else list(size) for size in sizes.values()]
    assert rows[0]["seen_at"] == [[16, 16]]
    assert sorted(row["target"] for row in rows) in ([0, 0, 1, 1, 2], [0, 0, 1, 2, 2], [0, 1, 1, 2, 2])
    assert all(row["distance"] > 0 for row in rows)
    again = run("refine", "--targets", "balanced", "--shard-size", 1, out=tmp_path / "shards")
    assert again[0] == 0
    assert everything(tmp_path / "shards") == everything(out)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_one_photograph_comes_back_as_one(run, folder, checkpoint, tmp_path, suffix):
    photo, out = tmp_path / f"photo{suffix}", tmp_path / f"better{suffix}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 20, 3), np.uint8)).save(photo)
    status, _, _ = run("refine", "--input", photo, out=out)
    assert status == 0
    with Image.open(out) as image, Image.open(photo) as before:
        assert image.size == before.size == (20, 30)
        assert image.format == before.format
    assert run("refine", "--input", photo, out=out)[1].startswith("already done")


@pytest.fixture
def overflowing(classifier, tmp_path):
    """A classifier with finite weights whose logits are not finite."""
    with torch.no_grad():
        classifier.head.weight.fill_(3e38)
    save(classifier, tmp_path / "overflowing.safetensors")
    return tmp_path / "overflowing.safetensors"


@commands
def test_numbers_that_are_not_finite_stop_the_run_in_one_line(run, command, overflowing, tmp_path):
    targets = ["--targets", "class:bird"]
    status, printed, error = run(command, "--ckpt", overflowing, *targets)
    assert (status, printed) == (2, "")
    assert re.search(
        r"overflowing.safetensors: its (logits|gradients|outputs) are not finite for image airplane/0", error
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.manifest.jsonl").exists()


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "fourier"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_gradient_that_is_not_finite_is_noticed_in_every_geometry(norm, keep):
    def loss(logits, y):
        return logits[:, 0] * torch.where(y == 1, torch.inf, 1.0)  # only image 1 has such a gradient

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).mean(dim=1, keepdim=True).expand(-1, 3)

    eps = 0.1 if norm == "linf" else 1.0
    attack = bigroc(eps, steps=3, norm=norm, keep=keep, loss=loss)
    refiner = BatchRefiner(Mean(), attack, torch.device("cpu"), 4, "uint8")
    pixels = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    with pytest.raises(NotFinite) as caught:
        refiner.refine(pixels, torch.tensor([0, 1, 2]))
    assert caught.value.index == 1
    refiner.refine(pixels, torch.tensor([0, 2, 2]))


def test_ctrl_c_says_what_stands_and_the_same_command_goes_on(run, tmp_path, monkeypatch):
    original, done = BatchRefiner.refine, []

    def interrupted(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BatchRefiner, "refine", interrupted)
        status, printed, error = run("refine", "--shard-size", 1)
    assert (status, printed) == (130, "")
    assert error.startswith("go on with: bigroc refine --eps 1 --steps 1 --ckpt ")
    assert standing(tmp_path / "out") == (
        f"2 finished shards are kept in {tmp_path / 'out.work'}; the same command goes on from there"
    )
    assert run("refine", "--shard-size", 1)[0] == 0
    assert run("refine", "--shard-size", 1, out=tmp_path / "undisturbed")[0] == 0
    assert everything(tmp_path / "out") == everything(tmp_path / "undisturbed")


@pytest.mark.parametrize("command", ["superres", "invert"])
@pytest.mark.parametrize("room", [100, 2000])
def test_a_full_disk_is_one_line_and_nothing_of_a_task_remains(run, command, room, tmp_path, folder):
    before = everything(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        status, _, error = run(command, out=tmp_path / "out.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert "make room and run the same command again" in error
    assert everything(tmp_path) == before
    assert run(command, out=tmp_path / "out.npz")[0] == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_a_command_in_few_lines_and_it_can_go_on(checkpoint, folder, tmp_path, number, status):
    words = ["refine", "--eps", "1", "--steps", "60", "--shard-size", "1", "--ckpt", checkpoint]
    words = [sys.executable, "-m", *map(str, [*words, "--input", folder, "--out", tmp_path / "out"])]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out.work").glob("shard-*.npy")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate()[1].rsplit("\r", 1)[-1]
    assert process.returncode == status
    assert "Traceback" not in error
    assert re.search(r"stopped: [123] finished shards are kept in \S*out.work; the same command goes on", error)
    assert "go on with: bigroc refine --eps 1" in error
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert len(open_images(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("flags", "names", "caption", "note"),
    [
        (
            ["--eps", "1"],
            ["before", "refined"],
            r"\w+\n\d+% > \d+%",
            "l2 eps 1. Below each image: its target",
        ),
        (
            ["--task", "invert"],
            ["given", "found"],
            r"\w+\n\d\.\d\d > \d\.\d\d",
            "l2 eps 20, 1 steps. Below",
        ),
        (["--task", "superres", "--factor", "2"], ["before", "after"], r"\w+\n\d+% > \d+%", "l2 eps 2, 1 steps. Below"),
        (
            ["--task", "paint", "--feature", "3", "--rectangle", "0,0,8,8"],
            ["before", "painted"],
            r"feature 3\n-?\d+\.\d\d > -?\d+\.\d\d",
            "l2 eps 5, 1 steps. Below each image: the feature that is raised, its value before > after",
        ),
    ],
)
def test_a_grid_says_what_it_shows(checkpoint, folder, tmp_path, monkeypatch, flags, names, caption, note):
    seen = {}

    def watched(path, rows, captions, *, note):
        seen.update(rows=[name for name, _ in rows], captions=captions, note=note)

    for place in ("refine.pictures", "refine.synthesis.task_pictures"):
        monkeypatch.setattr(f"{place}.save_rows", watched)
    words = [
        *flags,
        "--steps",
        1,
        "--ckpt",
        checkpoint,
        "--input",
        folder,
        "--out",
        tmp_path / "out",
        "--grid",
        "g.png",
    ]
    assert main([str(word) for word in words]) == 0
    assert seen["rows"][:2] == names
    assert all(re.fullmatch(caption, text) for text in seen["captions"])
    assert seen["note"].startswith(note)


@pytest.mark.parametrize("field", ["grid", "trajectory"])
@pytest.mark.parametrize("kind", ["photograph.png", "notes.png", "animation.gif"])
def test_a_picture_replaces_only_a_picture_of_ours(checkpoint, tmp_path, capsys, field, kind):
    pixels, _ = tiny_pixels(4)
    np.savez(tmp_path / "in.npz", arr_0=pixels)
    there = tmp_path / kind
    if kind == "notes.png":
        there.write_text("my notes")
    else:
        Image.fromarray(pixels[0]).save(there)
    before = there.read_bytes()
    words = ["--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / "out.npz", "--eps", 1]
    for command in (words, [*words[:2], "--task", "superres", "--factor", 2, *words[2:]]):
        assert main([str(word) for word in [*command, f"--{field}", there]]) == 2
        assert f"{field}: {there} exists and is no picture that this program made" in capsys.readouterr().err
    assert there.read_bytes() == before
    assert not (tmp_path / "out.npz").exists()
    ours = tmp_path / f"ours{there.suffix}"
    for eps in ("1", "2"):  # a second run replaces the picture of the first
        again = [*words[:-1], eps, f"--{field}", ours, "--overwrite"]
        assert main([str(word) for word in again]) == 0
