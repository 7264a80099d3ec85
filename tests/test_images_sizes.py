"""Images of any sizes: one file as a set, a folder of several sizes as groups; each comes back as it came."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from robust_models import UserError, open_images, write_images
from robust_models.images import check_out, open_image_groups, write_image_groups


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def copied(source: Path, out: Path, add_level: int = 0) -> None:
    groups = open_image_groups(source)
    with write_image_groups(out, like=groups) as adds:
        for images, add in reversed([*zip(groups.sets, adds, strict=True)]):  # in any order
            for _, x in images.batches(2):
                add(x if not add_level else (x.clamp(max=254) + add_level))


def test_a_folder_of_photographs_is_sets_of_one_size_each_in_the_order_of_the_folder(tmp_path):
    sizes = {"cat/1.jpg": (48, 64), "cat/2.png": (32, 32), "cat/10.webp": (48, 64), "dog/a.bmp": (7, 9)}
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(*size).save(tmp_path / name)
    groups = open_image_groups(tmp_path)
    assert len(groups) == 4
    assert groups.names == ["cat/1", "cat/2", "cat/10", "dog/a"]
    assert [images.size for images in groups.sets] == [(64, 48), (32, 32), (9, 7)]
    assert [places.tolist() for places in groups.places] == [[0, 2], [1], [3]]
    assert [images.labels.tolist() for images in groups.sets if images.labels is not None] == [[0, 0], [0], [1]]
    assert {images.class_names for images in groups.sets} == {("cat", "dog")}
    assert groups.about == "folder, 3 sizes from 7x9 to 48x64"
    with pytest.raises(UserError, match=r"mixed sizes: cat/1.jpg is 48x64, cat/2.png is 32x32"):
        groups.one_set()
    with pytest.raises(UserError, match=r"mixed sizes: cat/1.jpg is 48x64, cat/2.png is 32x32"):
        open_images(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_every_image_comes_back_in_its_size_depth_and_name(tmp_path, mode):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    for name, size in {"a.png": (5, 6), "b.png": (6, 5), "deep/c.png": (5, 6), "d.png": (100, 3)}.items():
        if mode == "I;16":
            Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[::-1]) * 9).save(source / name)
        else:
            picture(*size, mode).save(source / name)
    picture(5, 6).save(source / "e.png")  # another depth, or the same, of a size that is there
    copied(source, tmp_path / "out")
    assert sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.png")) == [
        "a.png", "b.png", "d.png", "deep/c.png", "e.png",
    ]  # fmt: skip
    for before, after in zip(open_image_groups(source).sets, open_image_groups(tmp_path / "out").sets, strict=True):
        assert before.depth == after.depth
        assert torch.equal(before.read(0, len(before)), after.read(0, len(after)))
    if mode == "RGBA":
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "out" / "b.png")), np.asarray(Image.open(source / "b.png"))
        )


def test_what_has_one_size_is_one_group_whatever_its_kind(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4, 3), np.uint8))
    (tmp_path / "folder").mkdir()
    for i in range(3):
        picture(4, 4).save(tmp_path / "folder" / f"{i}.png")
    for name in ("x.npz", "x.npy", "folder"):
        groups = open_image_groups(tmp_path / name)
        assert [len(images) for images in groups.sets] == [3]
        assert groups.places[0].tolist() == [0, 1, 2]
        assert groups.one_set() is groups.sets[0]
        copied(tmp_path / name, tmp_path / "out" / name)
        assert open_images(tmp_path / "out" / name).about == groups.about


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".png", "PNG"), (".webp", "WEBP"), (".bmp", "BMP"), (".tiff", "TIFF"), (".ppm", "PPM"), (".PNG", "PNG")],
)
def test_one_file_is_a_set_of_one_and_comes_back_as_a_file_without_loss(tmp_path, suffix, kind):
    picture(31, 17).save(tmp_path / "photo.png")
    images = open_images(tmp_path / "photo.png")
    assert (len(images), images.size, images.labels, list(images.names)) == (1, (17, 31), None, ["photo"])
    assert images.about == "one image file, uint8"
    copied(tmp_path / "photo.png", tmp_path / f"better{suffix}", add_level=1)
    with Image.open(tmp_path / f"better{suffix}") as written:
        assert written.format == kind
    again = open_images(tmp_path / f"better{suffix}")
    assert torch.equal(again.read(0, 1), images.read(0, 1).clamp(max=254) + 1)


def test_a_jpeg_comes_back_as_a_jpeg_of_high_quality(tmp_path):
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (30, 1, 3)))
    smooth.save(tmp_path / "photo.jpg")
    copied(tmp_path / "photo.jpg", tmp_path / "better.jpeg")
    with Image.open(tmp_path / "better.jpeg") as written:
        assert (written.format, written.size) == ("JPEG", (40, 30))
    before, after = (open_images(tmp_path / name).read(0, 1).int() for name in ("photo.jpg", "better.jpeg"))
    assert (before - after).abs().max() <= 3


def test_one_file_keeps_alpha_and_16_bits_or_says_which_format_does(tmp_path):
    picture(8, 8, "RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(np.full((8, 8), 777, np.uint16)).save(tmp_path / "deep.png")
    for source, fits in {"alpha": {".png", ".webp", ".tif"}, "deep": {".png"}}.items():
        for suffix in (".png", ".webp", ".tif", ".jpg", ".bmp", ".ppm"):
            out = tmp_path / f"{source}-out{suffix}"
            if suffix in fits:
                copied(tmp_path / f"{source}.png", out)
                assert np.array_equal(np.asarray(Image.open(out)).squeeze()[..., -1], expected(tmp_path, source))
            else:
                with pytest.raises(UserError, match=rf"ends in {suffix}, but the images are one image file, .*\.png"):
                    copied(tmp_path / f"{source}.png", out)


def expected(folder: Path, source: str) -> np.ndarray:
    pixels = np.asarray(Image.open(folder / f"{source}.png"))
    return pixels[..., -1] if source == "alpha" else pixels // 256


def test_a_place_that_does_not_fit_is_refused_before_any_work(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    (tmp_path / "mixed").mkdir()
    picture(4, 4).save(tmp_path / "mixed" / "a.png")
    picture(5, 4).save(tmp_path / "mixed" / "b.png")
    picture(5, 4).save(tmp_path / "one.png")
    for suffix in (".jpg", ".png", ".gif", ".JPEG"):
        with pytest.raises(UserError, match=rf"x{suffix} ends in {suffix.lower()}, but the images are npz, uint8"):
            check_out(tmp_path / f"x{suffix}", open_images(tmp_path / "x.npz"))
    for name in ("out", "out.npy", "out.xyz", "out.gif"):
        with pytest.raises(UserError, match=r"but the images are one image file, .*name a file ending in \.png"):
            copied(tmp_path / "one.png", tmp_path / name)
    with pytest.raises(UserError, match=r"out.npz is one array, but the images have several sizes; name a folder"):
        copied(tmp_path / "mixed", tmp_path / "out.npz")
    with (
        pytest.raises(UserError, match=r"0 of 1 images were added"),
        write_image_groups(tmp_path / "out", like=open_image_groups(tmp_path / "mixed")) as adds,
    ):
        adds[0](open_image_groups(tmp_path / "mixed").sets[0].read(0, 1))
    assert not (tmp_path / "out").exists()


def test_a_single_file_may_become_an_npz(tmp_path):
    picture(5, 4).save(tmp_path / "one.png")
    images = open_images(tmp_path / "one.png")
    with write_images(tmp_path / "out.npz", like=images) as add:
        add(images.read(0, 1))
    assert torch.equal(open_images(tmp_path / "out.npz").read(0, 1), images.read(0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_an_image_is_read_upright_and_written_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    stored.save(tmp_path / f"photo{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(tmp_path / f"photo{suffix}") as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    images = open_images(tmp_path / f"photo{suffix}")
    assert np.array_equal(images.read(0, 1)[0].permute(1, 2, 0).numpy(), upright)
    assert images.size == upright.shape[:2]
    copied(tmp_path / f"photo{suffix}", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.asarray(image), upright)
        assert not image.getexif()


def test_alpha_and_16_bits_are_turned_with_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(6, 4, "RGBA").save(tmp_path / "alpha.png", exif=exif)
    Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 999).save(tmp_path / "deep.png", exif=exif)
    for name in ("alpha", "deep"):
        before = np.asarray(Image.open(tmp_path / f"{name}.png"))
        copied(tmp_path / f"{name}.png", tmp_path / f"{name}-out.png")
        after = np.asarray(Image.open(tmp_path / f"{name}-out.png"))
        turned = np.rot90(before, -1)
        if name == "alpha":
            assert np.array_equal(after, turned)
        else:
            assert np.array_equal(open_images(tmp_path / "deep-out.png").read(0, 1)[0, 0].numpy(), turned)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_exif_block_of_nonsense_does_not_hide_the_image(tmp_path):
    for i, exif in enumerate((b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"nonsense" * 9)):
        stream = io.BytesIO()
        picture(6, 4).save(stream, "JPEG", exif=exif)
        (tmp_path / f"{i}.jpg").write_bytes(stream.getvalue())
    assert len(open_images(tmp_path)) == 3
