"""A run that is cut into shards: killed anywhere and resumed, on any batch size, it makes the same bytes."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import refine.cli
from refine.refine_batch import BatchRefiner, block_size
from refine.work_folder import Shards
from robust_models import load, open_images, save
from robust_models.images.open import fingerprint
from robust_models.images.record import record_path
from tests.tiny import CLASSES, fill, tiny_classifier, tiny_pixels

N, SHARD = 20, 8


@pytest.fixture
def pixels_npz(tmp_path):
    np.savez(tmp_path / "in.npz", arr_0=tiny_pixels(N)[0])
    return tmp_path / "in.npz"


def argv(checkpoint, source, out, **flags):
    flags = {"eps": 1, "steps": 2, "shard_size": SHARD, "device": "cpu", "precision": "fp32", **flags}
    words = ["--ckpt", checkpoint, "--input", source, "--out", out]
    return [str(word) for word in [*words, *itertools.chain(*((f"--{name}", value) for name, value in flags.items()))]]


def write_folder(root: Path, pixels) -> None:
    root.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i}.png")


def run(*arguments, **flags) -> int:
    return refine.cli.main(argv(*arguments, **flags))


def everything(out: Path) -> dict[str, bytes]:
    """The manifest and every byte of the output, by relative name."""
    manifest = out.with_name(out.name + ".manifest.jsonl")
    return {"manifest": manifest.read_bytes() if manifest.exists() else b""} | {
        file.relative_to(out.parent).as_posix().removeprefix(out.name): file.read_bytes()
        for file in ([out] if out.is_file() else out.rglob("*"))
        if file.is_file()
    }


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.with_name(out.name + ".manifest.jsonl").read_text().splitlines()]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".work" in path.name or path.name.endswith(".partial"))


@pytest.mark.parametrize("size", [1, 7, 20, 100])
def test_shards_cover_the_set_once_and_in_order(size):
    shards = Shards(N, size)
    assert [i for k in range(len(shards)) for i in range(N)[shards.part(k)]] == list(range(N))
    assert sum(map(shards.count, range(len(shards)))) == N


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_the_result_depends_neither_on_batch_size_nor_on_shards_nor_on_threads(checkpoint, pixels_npz, tmp_path):
    with threads(1):
        assert run(checkpoint, pixels_npz, tmp_path / "a.npz", shard_size=4096) == 0
    for batch_size, shard_size, count in ((1, 8, 1), (7, 3, 2), (64, 16, 2)):
        out = tmp_path / f"{batch_size}.npz"
        with threads(count):
            assert run(checkpoint, pixels_npz, out, batch_size=batch_size, shard_size=shard_size) == 0
        assert everything(out) == everything(tmp_path / "a.npz")


@pytest.mark.parametrize("ckpt", ["tiny", "cifar10-l2-small"])
def test_an_image_becomes_the_same_bits_alone_and_among_others(classifier, ckpt):
    model = classifier if ckpt == "tiny" else load(ckpt)
    block = block_size(torch.device("cpu"), model.image_size, batch_size=7)
    assert block == block_size(torch.device("cpu"), model.image_size, batch_size=512)
    refiner = BatchRefiner(model, refine.bigroc(1.0, steps=1), torch.device("cpu"), block, "float32")
    x = torch.rand(11, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    y = torch.arange(11) % 3
    together, outcome = refiner.refine(x, y)
    for part in (slice(0, 1), slice(4, 11)):
        alone, outcome_alone = refiner.refine(x[part], y[part])
        assert torch.equal(alone, together[part])
        for column, column_alone in zip(outcome, outcome_alone, strict=True):
            assert torch.equal(column_alone, column[part])


class Killed(BaseException):
    """Stands for SIGKILL in tests that cannot afford a process each."""


@contextmanager
def killed_before(commit: int):
    """Dies at the given change of the disk: every rename (a run makes a few, each is a commit) and every removal."""
    seen = itertools.count()

    def dying(original):
        def change(self, *arguments, **settings):
            if settings == {} and self.suffix != ".lock" and next(seen) == commit:  # partial files may be gone
                raise Killed
            return original(self, *arguments, **settings)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "rmdir"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        yield


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_killed_at_any_commit_and_resumed_it_makes_the_same_bytes(checkpoint, tmp_path, monkeypatch, kind):
    n, shard = 5, 3
    pixels = tiny_pixels(n)[0]
    source, flags = tmp_path / f"in.{kind}", {"shard_size": shard, "targets": "balanced"}
    if kind == "npz":
        np.savez(source, arr_0=pixels)
    else:
        flags = {**flags, "targets": "class:bird", "overwrite": "true"}
        write_folder(source, pixels)
    undisturbed, before = tmp_path / f"undisturbed.{kind}", tmp_path / f"before.{kind}"
    assert run(checkpoint, source, undisturbed, **flags) == 0
    if kind == "folder":
        assert run(checkpoint, source, before, **flags | {"eps": 2}) == 0

    refined = []
    original = BatchRefiner.refine
    monkeypatch.setattr(BatchRefiner, "refine", lambda *a: (refined.append(len(a[1])), original(*a))[1])
    for commit in itertools.count():
        out = tmp_path / f"{commit}.{kind}"
        if kind == "folder":  # what --overwrite is to replace
            shutil.copytree(before, out)
            shutil.copy2(record_path(before), record_path(out))
        refined.clear()
        try:
            with killed_before(commit):
                run(checkpoint, source, out, **flags)
            break  # there is no such commit: the run came through
        except Killed:
            state, all_done = tmp_path / f"{out.name}.work" / "run.json", everything(undisturbed) == everything(out)
            if all_done and not state.exists():
                state.parent.rmdir()  # all was done but this
            else:
                assert run(checkpoint, source, out, **flags) == 0
        assert everything(out) == everything(undisturbed)
        assert leftovers(tmp_path) == []
        assert sum(refined) <= n + shard  # no shard but the one that was cut off is done again
    assert commit > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_twenty_five_sigkills_leave_no_trace(checkpoint, tmp_path, kind):
    pixels = tiny_pixels(300)[0]
    source = tmp_path / ("in.npz" if kind == "npz" else "in")
    if kind == "npz":
        np.savez(source, arr_0=pixels)
    else:
        write_folder(source, pixels)
    flags = {"targets": "balanced", "shard_size": 16, "steps": 7}
    undisturbed, out = tmp_path / f"undisturbed.{kind}", tmp_path / f"out.{kind}"
    work = out.with_name(out.name + ".work")

    def start(out):
        words = [sys.executable, "-m", "refine", *argv(checkpoint, source, out, **flags)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    started = time.monotonic()
    assert start(undisturbed).wait() == 0
    whole_s = time.monotonic() - started
    draws = random.Random(0)
    kills, finished_shards = 0, []
    while kills < 25:
        if out.exists() and not work.exists():  # it came through: from the start again
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        process = start(out)
        try:
            process.wait(timeout=draws.uniform(0.1, 1.0) * whole_s)
            whole_s *= 0.8  # other work on the machine had made the first run slow
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            finished_shards.append(len(list(work.glob("shard-*.npy"))))
    if work.exists() or not out.exists():
        assert start(out).wait() == 0
    assert everything(out) == everything(undisturbed)
    assert leftovers(tmp_path) == []
    assert len(set(finished_shards)) > 3  # the kills came at different moments


@pytest.fixture
def unfinished(checkpoint, pixels_npz, tmp_path):
    """A run that died after its second shard."""
    out = tmp_path / "out.npz"
    with pytest.raises(Killed), killed_before(6):
        run(checkpoint, pixels_npz, out)
    work = tmp_path / "out.npz.work"
    assert sorted(path.name for path in work.glob("shard-*.npy")) == ["shard-00000.npy", "shard-00001.npy"]
    return out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"eps": 2}, "another eps (1.0 there, 2.0 now)"),
        ({"steps": 3}, "another steps (2 there, 3 now)"),
        ({"shard_size": 4}, "another shard_size (8 there, 4 now)"),
        ({"targets": "class:bird"}, "another targets (pseudo there, class:bird now)"),
        ({"ckpt": "cifar10-l2-small"}, "another ckpt ("),
    ],
)
def test_another_run_is_not_mixed_in(checkpoint, pixels_npz, tmp_path, capsys, unfinished, flags, message):
    kept = (tmp_path / "out.npz.work" / "shard-00001.npy").read_bytes()
    assert run(flags.pop("ckpt", checkpoint), pixels_npz, unfinished, **flags) == 2
    error = capsys.readouterr().err.rsplit("\r", 1)[-1].split("\n", 1)[-1]
    assert message in error
    assert "repeat that run's command to finish it, choose another --out, or pass --overwrite to drop it" in error
    assert error.count("\n") == 1
    assert (tmp_path / "out.npz.work" / "shard-00001.npy").read_bytes() == kept
    assert run(checkpoint, pixels_npz, unfinished, **flags, overwrite="true") == 0


@pytest.mark.parametrize(
    "flags", [{}, {"batch_size": 3, "overwrite": "true", "grid": "grid.png", "trajectory": "steps.gif"}]
)
def test_what_does_not_decide_the_images_may_change(checkpoint, pixels_npz, tmp_path, monkeypatch, unfinished, flags):
    monkeypatch.chdir(tmp_path)
    refined = []
    original = BatchRefiner.refine
    monkeypatch.setattr(BatchRefiner, "refine", lambda *a: (refined.append(len(a[1])), original(*a))[1])
    assert run(checkpoint, pixels_npz, unfinished, **flags) == 0
    assert sum(refined) == N - 2 * SHARD
    assert (tmp_path / "grid.png").exists() == ("grid" in flags)
    if "trajectory" in flags:
        with Image.open(tmp_path / "steps.gif") as picture:
            assert getattr(picture, "n_frames", 1) == 1 + 2  # the image itself and two steps


def test_a_changed_input_is_noticed(checkpoint, pixels_npz, tmp_path, capsys, unfinished):
    np.savez(pixels_npz, arr_0=tiny_pixels(N, seed=1)[0])
    assert run(checkpoint, pixels_npz, unfinished) == 2
    assert "an unfinished run with another input files (" in capsys.readouterr().err


def test_the_fingerprint_sees_names_sizes_and_times(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    seen = [fingerprint(tmp_path), fingerprint(tmp_path / "a")]
    assert fingerprint(tmp_path) == seen[0]
    (tmp_path / "a").write_text("x")
    seen.append(fingerprint(tmp_path))
    os.utime(tmp_path / "a", (1, 1))
    assert fingerprint(tmp_path) == seen[0]  # what it cannot see: the same size at the same time
    (tmp_path / "a").write_text("xy")
    os.utime(tmp_path / "a", (1, 1))
    seen.append(fingerprint(tmp_path))
    (tmp_path / "a").rename(tmp_path / "d")
    seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)


def test_a_folder_of_someone_elses_is_not_taken_for_work(checkpoint, pixels_npz, tmp_path, capsys):
    (tmp_path / "out.npz.work").mkdir()
    (tmp_path / "out.npz.work" / "thesis.txt").touch()
    assert run(checkpoint, pixels_npz, tmp_path / "out.npz", overwrite="true") == 2
    assert "out.npz.work is no run's work folder; remove it or choose another --out" in capsys.readouterr().err
    assert (tmp_path / "out.npz.work" / "thesis.txt").exists()


@contextmanager
def room_for_files_of(size: int):
    """No file may grow beyond `size` bytes: writing more fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("room", "finished"), [(4_000, 0), (8_000, 3)])  # a shard has 6.3 kB, the set 15.4 kB
def test_a_full_disk_is_one_line_and_keeps_finished_shards(checkpoint, pixels_npz, tmp_path, capfd, room, finished):
    out = tmp_path / "out.npz"
    with room_for_files_of(room):
        status = run(checkpoint, pixels_npz, out)
    error = capfd.readouterr().err.rsplit("\r", 1)[-1].splitlines()[-1]
    assert status == 2
    assert "(File too large); what was whole before is still valid: make room and run the same command again" in error
    assert not out.exists()
    assert len(list((tmp_path / "out.npz.work").glob("shard-*.npy"))) == finished
    assert not list((tmp_path / "out.npz.work").glob(".*.partial"))
    assert run(checkpoint, pixels_npz, out) == 0
    assert run(checkpoint, pixels_npz, tmp_path / "undisturbed.npz") == 0
    assert everything(out) == everything(tmp_path / "undisturbed.npz")


@pytest.mark.parametrize("free_kb", [2, 16, 40])
def test_a_disk_that_really_fills_up_costs_nothing_but_time(
    checkpoint, pixels_npz, tmp_path, tiny_disk, capfd, free_kb
):
    out, filler = tiny_disk / "out.npz", fill(tiny_disk, free_kb=free_kb)
    status = run(checkpoint, pixels_npz, out)
    error = capfd.readouterr().err.rsplit("\r", 1)[-1].splitlines()[-1]
    filler.unlink()
    assert status == 2
    assert "No space left on device" in error
    assert "make room and run the same command again" in error
    assert not out.exists()
    assert run(checkpoint, pixels_npz, out) == 0
    assert run(checkpoint, pixels_npz, tmp_path / "undisturbed.npz") == 0
    assert everything(out) == everything(tmp_path / "undisturbed.npz")


def test_the_manifest_tells_what_a_fresh_look_finds(classifier, checkpoint, pixels_npz, tmp_path):
    out = tmp_path / "out.npz"
    assert run(checkpoint, pixels_npz, out, targets="class:Automobile") == 0
    rows = manifest(out)
    assert [row["source"] for row in rows] == [f"{i:06d}" for i in range(N)]
    assert {(row["target"], row["class"], row["label_source"]) for row in rows} == {(1, "automobile", "one")}
    before, after = (open_images(path).read(0, N).float() / 255 for path in (pixels_npz, out))
    for when, x in (("before", before), ("after", after)):
        with torch.no_grad():
            log_probs = classifier(x).log_softmax(1)
        assert [row[f"confidence_{when}"] for row in rows] == pytest.approx(log_probs.exp()[:, 1].tolist(), abs=2e-6)
        assert [row[f"loss_{when}"] for row in rows] == pytest.approx((-log_probs[:, 1]).tolist(), abs=2e-5)
        assert [row[f"on_target_{when}"] for row in rows] == (log_probs.argmax(1) == 1).tolist()
    distances = (after - before).flatten(1).norm(dim=1).tolist()
    assert [row["distance"] for row in rows] == pytest.approx(distances, abs=1e-5)


def test_uncertain_images_are_left_alone_and_said_to_be(classifier, checkpoint, pixels_npz, tmp_path, capsys):
    pixels = open_images(pixels_npz).read(0, N)
    with torch.no_grad():
        certainty = classifier(pixels.float() / 255).softmax(1).amax(1)
    threshold = certainty.median().item() + 1e-4
    out = tmp_path / "out.npz"
    assert run(checkpoint, pixels_npz, out, uncertain=threshold) == 0
    refined = open_images(out).read(0, N)
    for i, row in enumerate(manifest(out)):
        assert (row["label_source"] == "untouched") == (certainty[i].item() < threshold)
        assert torch.equal(refined[i], pixels[i]) == (row["label_source"] == "untouched")
        assert (row["distance"] == 0) == (row["label_source"] == "untouched")
    untouched = int((certainty < threshold).sum())
    assert 0 < untouched < N
    assert f"{untouched} uncertain images left alone" in capsys.readouterr().out


@pytest.mark.parametrize(("prior", "counts"), [(None, {7, 6}), ("[2, 1, 1]", {10, 5})])
def test_balanced_targets_follow_the_prior(checkpoint, pixels_npz, tmp_path, prior, counts):
    flags = {"targets": "balanced"}
    if prior is not None:
        (tmp_path / "prior.json").write_text(prior)
        flags["prior"] = tmp_path / "prior.json"
    assert run(checkpoint, pixels_npz, tmp_path / "out.npz", **flags) == 0
    rows = manifest(tmp_path / "out.npz")
    found = [sum(row["target"] == c for row in rows) for c in range(3)]
    assert set(found) == counts
    assert sum(found) == N
    assert {row["label_source"] for row in rows} == {"balanced"}


def test_debiased_targets_are_those_of_all_logits_at_once(classifier, checkpoint, pixels_npz, tmp_path):
    assert run(checkpoint, pixels_npz, tmp_path / "out.npz", targets="debiased") == 0
    with torch.no_grad():
        logits = classifier(open_images(pixels_npz).read(0, N).float() / 255)
    expected = (logits - logits.mean(0)).argmax(1)
    assert [row["target"] for row in manifest(tmp_path / "out.npz")] == expected.tolist()


def test_labels_come_from_a_file(checkpoint, pixels_npz, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{i:06d},{CLASSES[i % 3]}\n" for i in range(N)))
    assert run(checkpoint, pixels_npz, tmp_path / "out.npz", targets=labels) == 0
    rows = manifest(tmp_path / "out.npz")
    assert [row["target"] for row in rows] == [i % 3 for i in range(N)]
    assert {row["label_source"] for row in rows} == {"file"}


def test_several_classifiers_refine_together(classifier, checkpoint, pixels_npz, tmp_path, capsys):
    other = tiny_classifier()  # other random weights
    save(other, tmp_path / "other.safetensors")
    out = tmp_path / "out.npz"
    names = f"{checkpoint},{tmp_path / 'other.safetensors'}"
    for targets in ("pseudo", "balanced"):
        assert run(names, pixels_npz, out, targets=targets, loss="margin", overwrite="true") == 0
        rows = manifest(out)
        x = open_images(out).read(0, N).float() / 255
        with torch.no_grad():
            probs = (classifier(x).softmax(1) + other(x).softmax(1)) / 2
        y = torch.tensor([row["target"] for row in rows])
        assert [row["confidence_after"] for row in rows] == pytest.approx(probs[range(N), y].tolist(), abs=2e-6)
        assert np.mean([row["loss_after"] - row["loss_before"] for row in rows]) < 0
    assert run(f"{checkpoint},nowhere", pixels_npz, tmp_path / "o.npz") == 2
    assert "ckpt: no file nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [{"center": "first_step"}, {"keep": "best"}, {"loss": "log_odds"}, {"norm": "linf"}])
def test_the_flags_are_those_of_the_loop(classifier, checkpoint, pixels_npz, tmp_path, flags):
    out = tmp_path / "out.npz"
    assert run(checkpoint, pixels_npz, out, **flags) == 0
    x = open_images(pixels_npz).read(0, N).float() / 255
    expected = refine.refine(classifier, x, eps=1, steps=2, **flags)
    difference = open_images(out).read(0, N).int() - (expected * 255).round().int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3


def test_eps_auto_is_searched_once_and_then_refines_all(checkpoint, pixels_npz, tmp_path, monkeypatch, capsys):
    save(tiny_classifier(), tmp_path / "judge.safetensors")
    np.savez(tmp_path / "real.npz", arr_0=tiny_pixels(N, seed=1)[0])
    search = {"eps": "auto", "reference": tmp_path / "real.npz", "judge": tmp_path / "judge.safetensors"}
    search["auto_accept"] = "best"
    out = tmp_path / "out.npz"
    with killed_before(3), pytest.raises(Killed):  # run.json, eps.json, and a shard's rows are there
        run(checkpoint, pixels_npz, out, **search, auto_images=8)
    found = json.loads((tmp_path / "out.npz.work" / "eps.json").read_text())
    assert run(checkpoint, pixels_npz, out, **search, auto_images=6) == 2
    assert "another auto_images (8 there, 6 now)" in capsys.readouterr().err
    monkeypatch.setattr("refine.auto_eps.search", None)  # not to be called again
    assert run(checkpoint, pixels_npz, out, **search, auto_images=8) == 0
    printed = capsys.readouterr().out
    assert f"eps {found['eps']:g}, 2 steps" in printed
    assert "on 8 images that did not choose, against 10 real ones" in printed
    assert run(checkpoint, pixels_npz, tmp_path / "same.npz", eps=found["eps"]) == 0
    assert everything(out) == everything(tmp_path / "same.npz")
    assert run(checkpoint, pixels_npz, tmp_path / "o.npz", **{**search, "judge": checkpoint}) == 2
    assert "is the classifier that refines" in capsys.readouterr().err
    assert not (tmp_path / "o.npz.work").exists()


def test_steps_auto_is_searched_once_and_then_refines_all(checkpoint, pixels_npz, tmp_path, monkeypatch, capsys):
    save(tiny_classifier(), tmp_path / "judge.safetensors")
    np.savez(tmp_path / "real.npz", arr_0=tiny_pixels(N, seed=1)[0])
    monkeypatch.setattr("refine.auto_steps.margin", lambda gain: 10.0)
    search = {"steps": "auto", "reference": tmp_path / "real.npz", "judge": tmp_path / "judge.safetensors"}
    out = tmp_path / "out.npz"
    with killed_before(3), pytest.raises(Killed):  # run.json, steps.json, and a shard's rows are there
        run(checkpoint, pixels_npz, out, eps=1, **search, auto_images=8)
    found = json.loads((tmp_path / "out.npz.work" / "steps.json").read_text())
    assert run(checkpoint, pixels_npz, out, eps=1, **search, auto_images=6) == 2
    assert "another auto_images (8 there, 6 now)" in capsys.readouterr().err
    monkeypatch.setattr("refine.auto_steps.choose_steps", None)  # not to be called again
    assert run(checkpoint, pixels_npz, out, eps=1, **search, auto_images=8) == 0
    assert f"eps 1, {found['steps']} steps" in capsys.readouterr().out
    record = json.loads((tmp_path / "out.npz.run.json").read_text())
    assert record["summary"]["steps_search"] == found
    assert run(checkpoint, pixels_npz, tmp_path / "same.npz", eps=1, steps=found["steps"]) == 0
    assert everything(out) == everything(tmp_path / "same.npz")
