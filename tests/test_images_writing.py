"""A refined set appears whole or not at all, whatever its kind and whatever fails."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from robust_models import UserError, open_images, write_images
from tests.test_images import write_folder
from tests.test_images_parquet import write_parquet
from tests.test_images_tar import shard
from tests.tiny import tiny_pixels

KINDS = ["in.npz", "in.npy", "in.pt", "folder", "in.tar", "in.parquet"]


def make(root, kind: str, n: int = 6, side: int = 16):
    """A set of noise, which does not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)
    match kind:
        case "in.npz":
            np.savez(root / kind, pixels)
        case "in.npy":
            np.save(root / kind, pixels)
        case "in.pt":
            torch.save(torch.from_numpy(pixels), root / kind)
        case "folder":
            write_folder(root / kind, pixels, [f"{i}.png" for i in range(n)])
        case "in.tar":
            shard(root / kind, 0, pixels, np.zeros(n, int))
        case "in.parquet":
            write_parquet(root / kind, pixels)
    return open_images(root / kind)


@contextmanager
def no_room_beyond(limit: int):
    """The system refuses to let any file grow beyond `limit` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def copy(images, out) -> None:
    with write_images(out, like=images, labels=images.labels) as add:
        for _, x in images.batches(2):
            add(x)


def out_of(kind: str) -> str:
    return "written" if kind == "folder" else kind.replace("in", "out")


@pytest.mark.parametrize("kind", KINDS)
def test_no_room_is_one_line_and_leaves_what_stood_there(tmp_path, kind):
    images = make(tmp_path, kind, side=64)
    out = tmp_path / out_of(kind)
    copy(images, out)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with (
        no_room_beyond(8192),
        pytest.raises(UserError, match=r": could not be written \(File too large\); what was"),
    ):
        copy(images, tmp_path / "another" if kind == "folder" else out)  # a folder is never replaced
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_midway_leaves_nothing(tmp_path, kind):
    images = make(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))

    def fail_after(count: int):
        with write_images(tmp_path / out_of(kind), like=images) as add:
            add(images.read(0, count))
            raise RuntimeError("stop")

    for count in (2, 6):
        with pytest.raises(RuntimeError, match="stop"):
            fail_after(count)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_do_not_fit_are_told(tmp_path, kind):
    images = make(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))

    def write(*batches):
        with write_images(tmp_path / out_of(kind), like=images) as add:
            for batch in batches:
                add(batch)

    x = images.read(0, 6)
    for batches, message in (
        ([x[:2]], r"add: 2 of 6 images were added; nothing is written"),
        ([x, x[:1]], r"add: 7 images for a set of 6"),
        ([x.float() / 255], r"add: torch.float32 \[6, 3, 16, 16\] came; expected torch.uint8 \[n,3,16,16\]"),
        ([x[..., :8]], r"add: torch.uint8 \[6, 3, 16, 8\] came; expected"),
    ):
        with pytest.raises(UserError, match=message):
            write(*batches)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "out", "message"),
    [
        (
            "in.npz",
            "x.tar",
            r"x.tar ends in .tar, but the images are npz, .* and stay of that kind; name a file .*\.npz",
        ),
        ("in.npy", "x.pt", r"ends in .pt, but the images are npy, uint8 \[N,H,W,3\] and stay .*; name .*\.npy"),
        ("folder", "x.npy", r"ends in .npy, but the images are folder, uint8 and stay of that kind; name a folder"),
        ("in.tar", "x.parquet", r"ends in .parquet, but the images are 1 tar shard, uint8 and stay"),
        ("in.npz", "there", r"there is a folder, but the images are npz"),
        ("folder", "file", r"file is a file, but the images are folder, uint8 and stay of that kind; name a folder"),
    ],
)
def test_an_output_of_another_kind_is_told(tmp_path, kind, out, message):
    images = make(tmp_path, kind)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        copy(images, tmp_path / out)


def test_several_shards_need_a_folder(tmp_path):
    pixels, labels = tiny_pixels(2)
    for k in range(2):
        shard(tmp_path / "in" / f"{k}.tar", k, pixels[k : k + 1], labels[k : k + 1])
    images = open_images(tmp_path / "in")
    with pytest.raises(UserError, match=r"x.tar ends in .tar, but the images are 2 tar shards, .*; name a folder"):
        copy(images, tmp_path / "x.tar")


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_can_become_an_npz(tmp_path, kind):
    images = make(tmp_path, kind)
    copy(images, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as written:
        assert np.array_equal(written["arr_0"].transpose(0, 3, 1, 2), images.read(0, 6).numpy())


def test_labels_of_another_number_are_told(tmp_path):
    images = make(tmp_path, "in.npz")
    with (
        pytest.raises(UserError, match=r"labels: 7 for 6 images; give one for each"),
        write_images(tmp_path / "x.npz", like=images, labels=np.zeros(7, int)),
    ):
        pass
