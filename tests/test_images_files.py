"""Folders and files as people have them: links, leftovers, other formats, odd names, files that are none, bombs."""

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refine.synthesis.drawings import open_drawings
from robust_models import UserError, open_images, write_images
from robust_models.datasets import open_dataset
from robust_models.images import open_image_groups
from robust_models.images.open import fingerprint


def save(file: Path, level: int = 0, size: int = 8) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (level, 0, 0)).save(file)
    return file


def names_by_images(folder: Path) -> list[str]:
    return list(open_images(folder).names)


def names_by_groups(folder: Path) -> list[str]:
    return open_image_groups(folder).names


def names_by_dataset(folder: Path) -> list[str]:
    data = open_dataset(str(folder), "train", image_size=8)
    return sorted(file.rpartition(".")[0] for file in data.store.files)  # type: ignore[union-attr]


def names_by_drawings(folder: Path) -> list[str]:
    return open_drawings(folder, 8).names


READERS = [names_by_images, names_by_groups, names_by_dataset, names_by_drawings]


@pytest.fixture
def two_classes(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        save(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.mark.parametrize("names", READERS)
def test_links_to_files_and_folders_are_followed_and_loops_are_cut(tmp_path, two_classes, names):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cat").symlink_to(two_classes / "cat")
    (linked / "hound").symlink_to(two_classes / "dog", target_is_directory=True)
    (linked / "wolf").mkdir()
    (linked / "wolf" / "9.png").symlink_to(two_classes / "dog" / "1.png")
    (linked / "wolf" / "up").symlink_to(linked)  # a loop
    (linked / "wolf" / "self").symlink_to("self")
    assert sorted(names(linked)) == ["cat/1", "cat/2", "hound/1", "wolf/9"]


@pytest.mark.parametrize("names", READERS)
@pytest.mark.parametrize(
    "leftover",
    [
        ".ipynb_checkpoints/1-checkpoint.png", "cat/._1.png", ".DS_Store", "Thumbs.db", "cat/thumbs.db",
        "__MACOSX/cat/1.png", "desktop.ini", ".hidden.png", ".git/x.png", "$RECYCLE.BIN/1.png",
    ],
)  # fmt: skip
def test_hidden_and_system_files_are_no_images_and_no_classes(two_classes, names, leftover, capsys):
    (two_classes / leftover).parent.mkdir(parents=True, exist_ok=True)
    (two_classes / leftover).write_bytes(b"\0\5\x16\7 not an image")
    assert sorted(names(two_classes)) == ["cat/1", "cat/2", "dog/1"]
    assert open_images(two_classes).class_names == ("cat", "dog")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", READERS[:3])
@pytest.mark.parametrize("suffix", [".ico", ".tga", ".heic", ".svg", ".psd", ".eps", ".txt", ""])
def test_other_files_are_counted_and_said_once(two_classes, names, suffix, capsys):
    for i in range(60):
        (two_classes / "cat" / f"more{i}{suffix}").write_bytes(b"?")
    (two_classes / "labels.csv").write_text("?")
    assert len(names(two_classes)) == len(names(two_classes)) == 3
    expected = f"set: passed over 60 {suffix or 'without suffix'}, 1 .csv; 3 files are read\n"
    assert capsys.readouterr().err.endswith(expected)
    assert open_images(two_classes).notes[0].endswith(expected.strip())
    assert capsys.readouterr().err == ""


def test_where_nothing_is_read_the_others_are_counted(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"?")
    with pytest.raises(UserError, match=r"no images here or below \(looked for .*; 1 other files\)"):
        open_images(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jpe", "jp2", "avif", "pgm", "pnm", "GIF"])
def test_more_formats_are_read(tmp_path, suffix):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "pgm": "PPM", "pnm": "PPM"}.get(suffix, suffix.upper())
    if kind not in Image.SAVE and not Image.init() and kind not in Image.SAVE:
        pytest.skip(f"this build of Pillow cannot write {kind}")
    image = Image.new("RGB", (8, 8), (200, 200, 200))
    (image.convert("L") if suffix == "pgm" else image).save(tmp_path / f"a.{suffix}", kind)
    assert (open_images(tmp_path).read(0, 1).int() - 200).abs().max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_is_refused_because_its_frames_would_be_lost(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 90, 180)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=rf"a.{suffix}: {suffix.upper()} of several frames; save each frame"):
        open_images(tmp_path)


def test_a_telephones_picture_with_a_preview_behind_it_is_one_image(tmp_path):
    first, second = (Image.new("RGB", (8, 8), (level, 0, 0)) for level in (50, 250))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert (open_images(tmp_path).read(0, 1)[0, 0].int() - 50).abs().max() <= 3


def test_no_other_program_is_started_for_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"a.png: cannot be decoded \(not an image of a known format\)"):
        open_images(tmp_path)


ODD_NAMES = [b"caf\xe9.png", b"two\nlines.png", b"tab\t.png", b"x" * 246 + b".png", "日本語.png".encode(), b"-rf.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_any_bytes_are_read_written_and_named_in_one_line(tmp_path, name):
    source = tmp_path / "in"
    save(source / os.fsdecode(name), 77)
    save(source / "plain.png", 77)
    images = open_images(source)
    with write_images(tmp_path / "out", like=images) as add:
        add(images.read(0, 2))
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted([name, b"plain.png"])
    assert fingerprint(source) != fingerprint(tmp_path / "out")
    (source / os.fsdecode(name)).write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be decoded") as failure:
        open_images(source)
    assert str(failure.value).isprintable()


def test_a_name_that_becomes_too_long_is_named(tmp_path):
    save(tmp_path / "in" / ("x" * 250 + ".png"))
    save(tmp_path / "in" / ("x" * 250 + ".jpg"))
    images = open_images(tmp_path / "in")
    with (
        pytest.raises(UserError, match=r"the name is too long once .png is behind it; shorten it"),
        write_images(tmp_path / "out", like=images, save_as="png") as add,
    ):
        add(images.read(0, 2))


def special(kind: str, place: Path) -> None:
    if kind == "FIFO":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(place.parent)  # a socket's path may have 108 bytes
            try:
                server.bind(place.name)
            finally:
                os.chdir(here)
    elif kind == "link to a device":
        place.symlink_to("/dev/zero")
    elif kind == "link to a FIFO":
        os.mkfifo(place.parent.parent / "pipe")
        place.symlink_to(place.parent.parent / "pipe")
    elif kind == "link to nothing":
        place.symlink_to("nowhere.png")
    else:
        place.symlink_to(place.name)


SPECIAL = {
    "FIFO": "a FIFO; only regular files are read",
    "socket": "a socket; only regular files are read",
    "link to a device": "a link to a device; only regular files are read",
    "link to a FIFO": "a link to a FIFO; only regular files are read",
    "link to nothing": r"cannot be read \(No such file or directory\)",
    "link to itself": r"cannot be read \(Too many levels of symbolic links\)",
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("suffix", [".png", ".npz", ".npy", ".pt", ".tar", ".parquet"])
def test_only_regular_files_are_read(tmp_path, kind, suffix):
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    place = folder / f"x{suffix}"
    special(kind, place)
    if "link to nothing" not in kind and "itself" not in kind:
        with pytest.raises(UserError, match=SPECIAL[kind]):
            open_images(place)
    if suffix in (".tar", ".parquet", ".png"):  # in a folder, as one of its files
        with pytest.raises(UserError, match=SPECIAL[kind].replace("a link to", ".*")):
            open_images(tmp_path / "set")
    if suffix == ".png":
        save(folder / "a.png")
        save(tmp_path / "set" / "dog" / "a.png")
        assert len(open_images(tmp_path / "set", on_error="skip")) == 2
        with pytest.raises(UserError, match=SPECIAL[kind]):
            open_dataset(str(tmp_path / "set"), "train", image_size=8).in_memory()
        with pytest.raises(UserError, match=SPECIAL[kind]):
            open_drawings(tmp_path / "set", 8)


@pytest.mark.parametrize("path", ["a\0b", "\0", "shards/{0..1}\0.tar"])
def test_a_path_with_a_null_byte_is_one_line(path):
    with pytest.raises(UserError, match=r"a path cannot hold a null byte"):
        open_images(path)


def png_header(width: int, height: int) -> bytes:
    """A whole PNG of black pixels, made without holding them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb(kind: str, place: Path) -> None:
    """An image of 13,000 x 13,000 pixels."""
    if kind == ".png":
        place.write_bytes(png_header(13000, 13000))
    else:
        options = {"compression": "group4"} if kind == ".tif" else {}
        Image.new("1", (13000, 13000)).save(place, {".tif": "TIFF", ".gif": "GIF"}[kind], **options)


@pytest.mark.parametrize("kind", [".png", ".tif", ".gif"])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, kind, monkeypatch):
    bomb(kind, tmp_path / f"bomb{kind}")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    message = (
        rf"bomb{kind}: 13000x13000 is 169,000,000 pixels; at most 67,108,864 are read: .*BIGROC_MAX_PIXELS=169000000"
    )
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / f"bomb{kind}")
    (tmp_path / "set" / "c").mkdir(parents=True)
    (tmp_path / f"bomb{kind}").rename(tmp_path / "set" / "c" / f"bomb{kind}")
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "set")


def test_the_limits_can_be_raised_and_lowered_and_are_checked(tmp_path, monkeypatch):
    save(tmp_path / "a.png", size=100)
    monkeypatch.setenv("BIGROC_MAX_PIXELS", "9999")
    with pytest.raises(UserError, match="100x100 is 10,000 pixels; at most 9,999 are read"):
        open_images(tmp_path)
    monkeypatch.setenv("BIGROC_MAX_PIXELS", "10000")
    assert len(open_images(tmp_path)) == 1
    for wrong in ("many", "-1", "1e9", "9" * 30):
        monkeypatch.setenv("BIGROC_MAX_PIXELS", wrong)
        with pytest.raises(UserError, match=r"BIGROC_MAX_PIXELS: '.*' is not a whole number"):
            open_images(tmp_path)
    monkeypatch.delenv("BIGROC_MAX_PIXELS")
    monkeypatch.setenv("BIGROC_MAX_BYTES", "20")
    with pytest.raises(UserError, match=r"a.png: .* bytes; at most 20 are read at once: set BIGROC_MAX_BYTES="):
        open_images(tmp_path)


@pytest.mark.parametrize("levels", ["train_images", "images", "train/images"])
def test_one_level_too_deep_is_an_error_that_shows_the_levels_below(tmp_path, levels):
    for c in range(7):
        save(tmp_path / "deep" / levels / f"c{c}" / "0.png")
    for size, split in ((None, "train"), (8, "train"), (None, "test"), (8, "test")):
        if split == "test" and levels.startswith("train/"):
            continue  # there is no folder of test images
        with pytest.raises(UserError, match=r"one class folder, .*images; below it are c0, c1, c2, c3, c4, \.\.\."):
            open_dataset(str(tmp_path / "deep"), split, image_size=size)
    assert len(open_dataset(str(tmp_path / "deep" / levels), "train")) == 7
    assert open_images(tmp_path / "deep").class_names is not None  # refined as it is


@pytest.mark.parametrize("name", ["dog", "7", "n01440764"])
def test_a_single_class_is_nothing_to_train_on_but_may_be_measured(tmp_path, name):
    for number in range(3):
        save(tmp_path / name / f"{number}.png")
    for size in (None, 8):
        with pytest.raises(UserError, match=rf"one class folder, {name}; labels come from subfolders, one per class"):
            open_dataset(str(tmp_path), "train", image_size=size)
        assert open_dataset(str(tmp_path), "test", image_size=size).class_names == (name,)


@pytest.mark.parametrize("change", ["deleted", "resized", "made deep", "cut", "made a folder", "made a FIFO"])
def test_a_file_changed_after_the_check_is_named(tmp_path, change):
    save(tmp_path / "a.png", 5)
    file = save(tmp_path / "b.png", 6)
    images = open_images(tmp_path)
    file.unlink()
    if change == "resized":
        save(file, size=9)
    elif change == "made deep":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(file)
    elif change == "cut":
        file.write_bytes(b"\x89PNG")
    elif change == "made a folder":
        file.mkdir()
    elif change == "made a FIFO":
        os.mkfifo(file)
    with pytest.raises(UserError, match=r"b\.png") as failure:
        images.read(0, 2)
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("kind", ["npz", "compressed npz", "npy", "pt", "tar"])
@pytest.mark.parametrize("change", ["deleted", "cut"])
def test_a_set_changed_after_the_check_is_named(tmp_path, kind, change):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    path = tmp_path / f"x.{kind.rpartition(' ')[2]}"
    if kind == "npy":
        np.save(path, pixels)
    elif kind == "pt":
        torch.save(torch.from_numpy(pixels), path)
    elif kind == "tar":
        from tests.test_images_tar import shard

        shard(path, 0, pixels, np.zeros(40, int))
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, arr_0=pixels)
    images = open_images(path)
    content = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=r"x\.") as failure:
        images.read(0, 40)
    assert str(failure.value).isprintable()


NO_IMAGES = [b"", b"\0" * 600, b"GIF89a", b"\xff\xd8\xff\xe0", b"BM" + b"\xff" * 60, b"P6 9999999 9 1"]


def test_what_is_not_a_file_of_its_kind_is_one_line(tmp_path):
    for i, content in enumerate(
        (b"", b"\0" * 600, b"GIF89a", b"\xff\xd8\xff\xe0", b"BM" + b"\xff" * 60, b"P6 9999999 9 1")
    ):
        (tmp_path / f"{i}.png").write_bytes(content)
    save(tmp_path / "good.png")
    found = open_images(tmp_path, on_error="skip")
    assert len(found) == 1
    assert len(found.skipped) == 6
    assert all(line.isprintable() for line in found.skipped)
