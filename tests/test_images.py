import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_models import UserError, open_images, to_float, to_u8, write_images
from robust_models.images import write_npz
from tests.tiny import tiny_pixels


def write_folder(root: Path, pixels: np.ndarray, names: list[str]) -> Path:
    for image, name in zip(pixels, names, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)
    return root


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def test_every_grey_level_survives_the_trip_through_float():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_u8(to_float(levels)), levels)


def test_uint8_is_clipped_then_rounded_half_to_even():
    x = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.7 / 255, 7.0], dtype=torch.float64)
    assert to_u8(x).tolist() == [0, 0, 2, 2, 255, 255]


def test_npz_round_trip(tmp_path):
    pixels, labels = tiny_pixels(10)
    np.savez(tmp_path / "in.npz", arr_0=pixels, arr_1=labels)
    images = open_images(tmp_path / "in.npz")
    assert (len(images), images.size) == (10, (16, 16))
    with write_images(tmp_path / "out.npz", like=images, labels=images.labels) as add:
        for _, x_u8 in images.batches(4):
            assert x_u8.shape[1:] == (3, 16, 16)
            add(x_u8)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as written:
        assert np.array_equal(written["arr_0"], pixels)
        assert np.array_equal(written["arr_1"], labels)


def test_equal_sets_give_equal_bytes_whatever_the_batch(tmp_path):
    pixels, _ = tiny_pixels(10)
    x_u8 = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    write_npz(tmp_path / "whole.npz", x_u8)
    with write_images(tmp_path / "parts.npz", like=open_images(tmp_path / "whole.npz")) as add:
        for part in x_u8.split(3):
            add(part)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()


def test_folder_round_trip_keeps_names_and_classes(tmp_path):
    pixels, _ = tiny_pixels(4)
    names = ["cat/10.png", "cat/2.png", "dog/deep/1.png", "dog/x.png"]
    images = open_images(write_folder(tmp_path / "in", pixels, names))
    assert list(images.names) == ["cat/2", "cat/10", "dog/deep/1", "dog/x"]
    assert images.class_names == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1]
    with write_images(tmp_path / "out", like=images) as add:
        add(images.read(0, 4))
    again = open_images(tmp_path / "out")
    assert list(again.names) == list(images.names)
    assert torch.equal(again.read(0, 4), images.read(0, 4))


def test_a_flat_folder_has_no_labels_and_any_format_is_read(tmp_path):
    pixels, _ = tiny_pixels(3)
    write_folder(tmp_path, pixels, ["a.png", "b.webp", "c.JPG"])
    images = open_images(tmp_path)
    assert len(images) == 3
    assert images.labels is None


def test_grey_becomes_rgb_and_alpha_is_kept_for_the_refined_image(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.new("L", (8, 8), 77).save(source / "grey.png")
    Image.new("LA", (8, 8), (77, 9)).save(source / "grey_alpha.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    palette.save(source / "palette.png", transparency=b"\x05")
    Image.new("RGBA", (8, 8), (10, 20, 30, 128)).save(source / "rgba.png")
    images = open_images(source)
    assert images.read(0, 4)[:, :, 0, 0].tolist() == [[77, 77, 77], [77, 77, 77], [10, 20, 30], [10, 20, 30]]
    with write_images(tmp_path / "out", like=images) as add:
        add(torch.full((2, 3, 8, 8), 50, dtype=torch.uint8))
        add(torch.full((2, 3, 8, 8), 60, dtype=torch.uint8))
    written = {file.stem: Image.open(file).getpixel((0, 0)) for file in (tmp_path / "out").iterdir()}
    assert written == {
        "grey": (50, 50, 50),
        "grey_alpha": (50, 50, 50, 9),
        "palette": (60, 60, 60, 5),
        "rgba": (60, 60, 60, 128),
    }


def test_same_stem_twice_keeps_both_files_apart(tmp_path):
    pixels, _ = tiny_pixels(2)
    images = open_images(write_folder(tmp_path / "in", pixels, ["a.png", "a.webp"]))
    with write_images(tmp_path / "out", like=images) as add:
        add(images.read(0, 2))
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_truncated_image_is_fatal_at_once_and_named(tmp_path):
    pixels, _ = tiny_pixels(20)
    write_folder(tmp_path, pixels, [f"{i}.png" for i in range(20)])
    truncate(tmp_path / "7.png")
    with pytest.raises(UserError, match=r"7\.png: cannot be decoded .* --on-error skip"):
        open_images(tmp_path)
    images = open_images(tmp_path, on_error="skip")
    assert len(images) == 19
    assert len(images.skipped) == 1
    assert "7.png" in images.skipped[0]


def test_nothing_is_left_when_writing_fails(tmp_path):
    pixels, _ = tiny_pixels(4)
    folder = open_images(write_folder(tmp_path / "in", pixels, ["a.png", "b.png", "c.png", "d.png"]))
    before = sorted(tmp_path.rglob("*"))

    def write_half(out):
        with write_images(out, like=folder) as add:
            add(folder.read(0, 2))
            raise RuntimeError("disk")

    for out in ("out", "out.npz"):
        with pytest.raises(RuntimeError, match="disk"):
            write_half(tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.zeros((2, 4, 4, 3), np.uint8)}, r"no array 'arr_0' \(it holds: weights\)"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.int64)}, r"arr_0 is int64 \[2, 4, 4, 3\]; expected \[N,H,W,3\] of uint8"),
        ({"arr_0": np.zeros((2, 5, 4, 2), np.uint8)}, r"arr_0 is uint8 \[2, 5, 4, 2\]; expected \[N,H,W,3\] of"),
        (
            {"arr_0": np.zeros((2, 4, 4), np.uint8)},
            r"arr_0 is uint8 \[2, 4, 4\]; .*; if it is one image, save images\[None\]; if these are grey .*\[:, None\]",
        ),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, r"arr_0 is in Fortran order; save numpy\."),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"N > 0"),
        (
            {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, np.int64)},
            r"arr_1 is int64 \[3\]; .* each of 2 images",
        ),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(2)}, r"arr_1 is float64 \[2\]"),
    ],
)
def test_an_npz_of_another_kind_is_described(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "x.npz")


def test_no_pickle_inside_an_npz_is_opened(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"arr_0 is an array of pickled objects, which are never opened"):
        open_images(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((1, 4, 4, 3), np.uint8), arr_1=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        open_images(tmp_path / "x.npz")


def test_a_flipped_bit_in_an_npz_is_noticed_before_any_use(tmp_path):
    pixels, _ = tiny_pixels(4)
    np.savez(tmp_path / "x.npz", arr_0=pixels)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"not a readable \.npz \(Bad CRC-32"):
        open_images(tmp_path / "x.npz")


def test_other_bad_inputs_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images here or below"):
        open_images(tmp_path)
    (tmp_path / "junk.npz").write_text("<html>")
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        open_images(tmp_path / "junk.npz")
    with zipfile.ZipFile(tmp_path / "half.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01")
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        open_images(tmp_path / "half.npz")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes.txt: of no known kind; give a folder of images, \.npz, \.npy, \.pt"):
        open_images(tmp_path / "notes.txt")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "one.png").write_bytes((tmp_path / "one.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"one\.png: cannot be decoded"):
        open_images(tmp_path / "one.png")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); choose another place"):
        write_npz(tmp_path / "file" / "out.npz", torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_mixed_sizes_and_depths_are_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"mixed sizes: a.png is 8x8, b.png is 9x8"):
        open_images(tmp_path)
    Image.new("I;16", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"mixed depths: a.png is uint8, b.png is uint16"):
        open_images(tmp_path)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_deep_pixels_that_pillow_would_reduce_are_refused(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "deep.tif")
    with pytest.raises(
        UserError, match=rf"deep.tif: TIFF, {mode}, with more than 8 bits .*; convert it to a 16-bit PNG"
    ):
        open_images(tmp_path)


def test_a_deep_ppm_is_refused(tmp_path):
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    with pytest.raises(UserError, match=r"deep.ppm: PPM, RGB, with more than 8 bits"):
        open_images(tmp_path)
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 255\n" + bytes(12))
    assert open_images(tmp_path).depth == "uint8"


def test_files_are_in_natural_order_whatever_the_folders(tmp_path):
    pixels, _ = tiny_pixels(6)
    names = ["b/1.png", "a10/1.png", "a2/07.png", "a2/8.png", "a2/70.png", "a2/0.png"]
    images = open_images(write_folder(tmp_path, pixels, names))
    assert list(images.names) == ["a2/0", "a2/07", "a2/8", "a2/70", "a10/1", "b/1"]
    assert images.class_names == ("a2", "a10", "b")
