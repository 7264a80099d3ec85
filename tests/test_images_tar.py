"""WebDataset tar shards in, the same shards out."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_models import UserError, open_images, write_images
from tests.tiny import tiny_pixels


def encoded(pixels: np.ndarray, suffix: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix], lossless=True)
    return stream.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return path


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def shard(path: Path, first: int, pixels: np.ndarray, labels: np.ndarray, suffix: str = "png") -> Path:
    """Labels stand before the images in odd samples, behind them in even ones."""
    content: list[tuple[str, bytes]] = []
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True), first):
        sample = [(f"train/{i:04d}.{suffix}", encoded(image, suffix)), (f"train/{i:04d}.cls", b"%d\n" % label)]
        content += sample[:: -1 if i % 2 else 1]
    return write_tar(path, content)


def refine(images, out: Path, batch_size: int = 4):
    """Every image made darker by one level."""
    with write_images(out, like=images, labels=images.labels) as add:
        for _, x in images.batches(batch_size):
            add(x - 1)
    return open_images(out)


@pytest.mark.parametrize("pattern", ["shards", "shards/{000..002}.tar", "shards/*.tar", "shards/00{0,1,2}.tar"])
def test_shards_stay_shards_with_their_samples(tmp_path, pattern):
    pixels, labels = tiny_pixels(9)
    pixels += 1
    for k in range(3):
        part = slice(3 * k, 3 * k + 3)
        shard(tmp_path / "shards" / f"{k:03d}.tar", 3 * k, pixels[part], labels[part], ["png", "webp", "png"][k])
    images = open_images(tmp_path / pattern)
    assert (len(images), images.size, images.about) == (9, (16, 16), "3 tar shards, uint8")
    assert images.labels is not None
    assert images.labels.tolist() == labels.tolist()
    assert list(images.names[2:4]) == ["000/train/0002", "001/train/0003"]
    assert torch.equal(
        images.read(0, 9)[[0, 1, 2, 6, 7, 8]], torch.from_numpy(pixels.transpose(0, 3, 1, 2))[[0, 1, 2, 6, 7, 8]]
    )
    again = refine(images, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["000.tar", "001.tar", "002.tar"]
    assert torch.equal(again.read(0, 9), images.read(0, 9) - 1)
    assert again.labels is not None
    assert again.labels.tolist() == labels.tolist()
    assert list(again.names) == list(images.names)
    before, after = (members(tmp_path / folder / "001.tar") for folder in ("shards", "out"))
    assert list(after) == [name.replace("webp", "png") for name in before]
    assert after["train/0003.cls"] == before["train/0003.cls"]


def test_one_tar_gives_one_tar_equal_on_every_run(tmp_path):
    pixels, labels = tiny_pixels(5)
    images = open_images(shard(tmp_path / "a.tar", 0, pixels, labels))
    assert images.names[4] == "train/0004"
    refine(images, tmp_path / "b.tar", 2)
    refine(images, tmp_path / "c.tar", 5)
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()


def test_labels_in_json_other_files_and_long_names_stay(tmp_path):
    pixels, _ = tiny_pixels(2)
    long = "x" * 120
    notes = json.dumps({"label": 1, "caption": "a cat"}).encode()
    content = [
        ("README.md", b"hello"),
        ("a.json", notes),
        ("a.JPG", encoded(pixels[0], "jpg")),
        ("a.seg.png", b"not the image: its extension is seg.png"),
        (f"{long}.png", encoded(pixels[1])),
        (f"{long}.json", b'{"label": 2}'),
    ]
    images = open_images(write_tar(tmp_path / "a.tar", content))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 2]
    refine(images, tmp_path / "b.tar")
    after = members(tmp_path / "b.tar")
    assert list(after) == ["README.md", "a.json", "a.png", "a.seg.png", f"{long}.png", f"{long}.json"]
    assert after["a.json"] == notes
    with Image.open(io.BytesIO(after["a.png"])) as image:
        assert image.format == "PNG"


def test_a_tar_without_labels_has_none_and_alpha_is_kept(tmp_path):
    rgba = np.dstack([tiny_pixels(1)[0][0] + 1, np.full((16, 16), 7, np.uint8)])
    images = open_images(write_tar(tmp_path / "a.tar", [("a.png", encoded(rgba))]))
    assert images.labels is None
    refine(images, tmp_path / "b.tar")
    with Image.open(io.BytesIO(members(tmp_path / "b.tar")["a.png"])) as image:
        assert np.array_equal(np.asarray(image), np.dstack([rgba[..., :3] - 1, rgba[..., 3]]))


def test_a_corrupt_member_is_named_or_skipped_with_its_label(tmp_path):
    pixels, labels = tiny_pixels(4)
    content = list(members(shard(tmp_path / "x.tar", 0, pixels, labels)).items())
    content = [(name, data[:40] if name == "train/0001.png" else data) for name, data in content]
    file = write_tar(tmp_path / "a.tar", content)
    with pytest.raises(UserError, match=r"a.tar: train/0001.png: cannot be decoded .*; mend or remove it, or pass"):
        open_images(file)
    images = open_images(file, on_error="skip")
    assert len(images) == 3
    assert images.labels is not None
    assert images.labels.tolist() == labels[[0, 2, 3]].tolist()
    assert "train/0001.png" in images.skipped[0]
    again = refine(images, tmp_path / "b.tar")
    assert torch.equal(again.read(0, 3), images.read(0, 3) - 1)
    assert [name for name in members(tmp_path / "b.tar") if "0001" in name] == []


@pytest.mark.parametrize("kept", [512 * 5 + 100, 512 * 6])
def test_a_tar_cut_short_is_named(tmp_path, kept):
    """In the middle of a file, and between two, where tarfile itself sees a proper end."""
    content = [(f"{i}.txt", b"1") for i in range(4)]
    file = write_tar(tmp_path / "a.tar", content)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a.tar: cut short or broken after \d.txt \(.*\); copy or make it anew"):
        open_images(file)


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    pixels, labels = tiny_pixels(3)
    file = shard(tmp_path / "a.tar", 0, pixels, labels)
    content = bytearray(file.read_bytes())
    with tarfile.open(file) as archive:
        content[archive.getmembers()[4].offset + 10] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a.tar: cut short or broken after train/0001.png \(no end mark\)"):
        open_images(file)


def case(*names: str) -> list[tuple[str, bytes]]:
    image = encoded(tiny_pixels(1)[0][0])
    return [(name, image if name.endswith("png") else b"1") for name in names]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (case("a.png", "a.cls", "b.png"), r"2 images but 1 labels: sample b has neither .cls nor a label in .json"),
        (case("a.png", "a.cls", "b.cls"), r"sample b has a label but no image"),
        (case("a.png", "a.x.png", "a.PNG"[:2] + "png") + case("a.jpg"), r"sample a has several images \(a.png and "),
        ([*case("a.png"), ("a.cls", b"cat")], r"a.cls holds b'cat'; expected a class index"),
        ([*case("a.png"), ("a.json", b"{")], r"a.json is not JSON"),
        ([("a.txt", b"x")], r"no images in 1 tar shards"),
    ],
)
def test_bad_shards_are_told(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        open_images(write_tar(tmp_path / "a.tar", content))


def test_patterns_that_lead_nowhere_and_compressed_tars_are_told(tmp_path):
    write_tar(tmp_path / "0.tar", case("a.png"))
    with pytest.raises(UserError, match=r"1\.tar is missing \(2 of 3 are\)"):
        open_images(tmp_path / "{0..2}.tar")
    with pytest.raises(UserError, match=r"no file matches"):
        open_images(tmp_path / "x*.tar")
    with tarfile.open(tmp_path / "z.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"not a readable tar .*; a compressed one must be unpacked first"):
        open_images(tmp_path / "z.tar")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"holds .tar files among others; give a folder of one kind"):
        open_images(tmp_path)


def test_mixed_sizes_across_shards_are_named(tmp_path):
    for k, side in enumerate((8, 9)):
        write_tar(tmp_path / f"{k}.tar", [("a.png", encoded(np.zeros((side, side, 3), np.uint8)))])
    with pytest.raises(UserError, match=r"mixed sizes: 0.tar: a.png is 8x8, 1.tar: a.png is 9x9"):
        open_images(tmp_path)
