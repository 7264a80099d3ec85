"""A folder of image files comes back file by file in each one's own format, and says where that has losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigroc.cli import main as bigroc
from robust_models import open_images, write_images
from robust_models.images import open_image_groups, write_image_groups
from robust_models.images.codec import IMAGE_SUFFIXES

SIDE = 16
FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pnm": "PPM"}
JPEGS = (".jpg", ".jpeg", ".jpe", ".jfif")
READ_ONLY = sorted(IMAGE_SUFFIXES - {*FORMATS, *JPEGS})


def smooth(i: int, *, mode: str = "RGB", side: int = SIDE) -> Image.Image:
    """A soft gradient, of which JPEG loses little."""
    ramp = np.linspace(10 * i, 180, side)[None, :, None] + np.linspace(0, 60, side)[:, None, None]
    pixels = np.broadcast_to(ramp, (side, side, 4)).astype(np.uint8).copy()
    pixels[: side // 2, :, 3] = 0
    return Image.fromarray(pixels, "RGBA").convert(mode)


def folder_of(root: Path, *names: str, mode: str = "RGB") -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = Path(name).suffix.lower()
        kind = FORMATS.get(suffix) or ("JPEG" if suffix in JPEGS else None)
        lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        smooth(i, mode=mode).save(root / name, kind if kind or suffix != ".pbm" else "PPM", **lossless)
    return root


def copied(source: Path, out: Path, **settings) -> list[str]:
    """The set one level brighter, and the files of which it is made."""
    groups = open_image_groups(source)
    with write_image_groups(out, like=groups, **settings) as adds:
        for images, add in zip(groups.sets, adds, strict=True):
            x = images.read(0, len(images))
            add(x.clamp(max=254) + 1 if x.dtype == torch.uint8 else x)
    return sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())


def pixels(path: Path) -> torch.Tensor:
    images = open_images(path)
    return images.read(0, len(images)).int()


@pytest.mark.parametrize("suffix", [*FORMATS, *(suffix.upper() for suffix in FORMATS)])
def test_a_format_without_loss_comes_back_as_it_is_with_the_very_pixels(tmp_path, suffix):
    source = folder_of(tmp_path / "in", f"cat/a{suffix}", f"dog/b{suffix}")
    assert copied(source, tmp_path / "out") == [f"cat/a{suffix}", f"dog/b{suffix}"]
    with Image.open(tmp_path / "out" / f"cat/a{suffix}") as written:
        assert written.format == FORMATS[suffix.lower()]
    assert torch.equal(pixels(tmp_path / "out"), pixels(source) + 1)
    assert open_images(tmp_path / "out").class_names == ("cat", "dog")


@pytest.mark.parametrize("suffix", [*JPEGS, ".JPG"])
def test_a_jpeg_comes_back_as_one_of_high_quality(tmp_path, suffix):
    source = folder_of(tmp_path / "in", f"a{suffix}")
    assert copied(source, tmp_path / "out") == [f"a{suffix}"]
    with Image.open(tmp_path / "out" / f"a{suffix}") as written:
        assert written.format == "JPEG"
        assert written.layer == [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # no channel is subsampled
    assert (pixels(tmp_path / "out") - pixels(source) - 1).abs().max() <= 3


@pytest.mark.parametrize("suffix", [suffix for suffix in READ_ONLY if suffix not in (".pgm", ".pbm")])
def test_what_is_read_but_not_written_becomes_png(tmp_path, suffix):
    try:
        source = folder_of(tmp_path / "in", f"a{suffix}")
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow writes no {suffix}: {error}")
    assert copied(source, tmp_path / "out") == ["a.png"]
    assert torch.equal(pixels(tmp_path / "out"), pixels(source) + 1)


@pytest.mark.parametrize(("suffix", "stays"), [(".png", True), (".webp", True), (".tif", True), (".bmp", False)])
def test_alpha_is_kept_and_decides_where_a_format_has_none(tmp_path, suffix, stays):
    source = folder_of(tmp_path / "in", "a.png", mode="RGBA")
    (source / "a.png").rename(source / f"a{suffix}")  # content decides what is read, the name what is written
    written = copied(source, tmp_path / "out")
    assert written == [f"a{suffix}" if stays else "a.png"]
    before, after = (np.asarray(Image.open(file)) for file in (source / f"a{suffix}", tmp_path / "out" / written[0]))
    assert np.array_equal(after[..., 3], before[..., 3])
    assert np.array_equal(after[..., :3].astype(int), before[..., :3].astype(int) + 1)  # also where it is transparent


@pytest.mark.parametrize(("size", "suffix"), [((16384, 1), ".webp"), ((1, 65501), ".jpg")])
def test_what_is_too_long_for_its_format_becomes_png(tmp_path, size, suffix):
    (tmp_path / "in").mkdir()
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / f"a{suffix}")
    assert copied(tmp_path / "in", tmp_path / "out") == ["a.png"]


def test_sixteen_bits_stay_whatever_the_file_is_called(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((8, 8), 777, np.uint16)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / "a.jpg")
    assert copied(tmp_path / "in", tmp_path / "out") == ["a.png"]
    assert open_images(tmp_path / "out").depth == "uint16"


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (("a.jpg", "a.png"), ["a.jpg", "a.png"]),
        (("a.gif", "a.png"), ["a.gif.png", "a.png"]),
        (("a.gif", "a.gif.png", "a.png"), ["a.gif.png", "a.gif.png.png", "a.png"]),
        (("c/a.gif", "d/a.png"), ["c/a.png", "d/a.png"]),
    ],
)
def test_no_image_takes_the_name_of_another(tmp_path, names, written):
    source = folder_of(tmp_path / "in", *names)
    assert copied(source, tmp_path / "out") == written
    assert len(open_images(tmp_path / "out")) == len(names)


def test_save_as_png_has_no_losses(tmp_path):
    source = folder_of(tmp_path / "in", "a.jpg", "sub/b.webp", "sub/b.png", "c.BMP")
    assert copied(source, tmp_path / "out", save_as="png") == ["a.jpg.png", "c.BMP.png", "sub/b.png", "sub/b.webp.png"]
    images = open_images(source)
    with write_images(tmp_path / "one", like=images, save_as="png") as add:
        add(images.read(0, 4))
    assert sorted(pixels(tmp_path / "one").flatten().tolist()) == sorted(pixels(source).flatten().tolist())


@pytest.mark.parametrize("save_as", ["source", "png"])
def test_refine_says_what_has_losses_and_can_do_without(tmp_path, checkpoint, capsys, save_as):
    source = folder_of(tmp_path / "in", "a.jpg", "b.png", "c.jpeg")
    Image.new("RGB", (9, 7), (200, 10, 10)).save(source / "d.jpg")  # of another size
    words = ["refine", "--ckpt", checkpoint, "--input", source, "--out", tmp_path / "out", "--eps", "1", "--steps", "2"]
    words = [str(word) for word in [*words, "--save-as", save_as]]
    assert bigroc(words) == 0
    said = capsys.readouterr().out
    assert said.count("3 written as JPEG") == (save_as == "source")
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == (
        ["a.jpg", "b.png", "c.jpeg", "d.jpg"] if save_as == "source" else ["a.png", "b.png", "c.png", "d.png"]
    )
    rows = [json.loads(line) for line in (tmp_path / "out.manifest.jsonl").read_text().splitlines()]
    assert [row.get("lossy", False) for row in rows] == [save_as == "source" and i != 1 for i in range(4)]
    assert [images.size for images in open_image_groups(tmp_path / "out").sets] == [(SIDE, SIDE), (7, 9)]
    assert bigroc(words) == 0
    assert "already done" in capsys.readouterr().out


def test_eval_quality_reads_all_of_a_refined_folder(tmp_path, checkpoint, capsys):
    source = folder_of(tmp_path / "in", *(f"{'ab'[i % 2]}/{i}{suffix}" for i, suffix in enumerate([*FORMATS, *JPEGS])))
    words = ["refine", "--ckpt", checkpoint, "--input", source, "--out", tmp_path / "out", "--eps", "0", "--steps", "1"]
    assert bigroc([str(word) for word in [*words, "--targets", "pseudo"]]) == 0
    capsys.readouterr()
    words = ["eval", "quality", "--images", tmp_path / "out", "--reference", source, "--cache", "none", "--json"]
    words += ["--features", f"classifier:{checkpoint}", "--metrics", "fid"]
    assert bigroc([str(word) for word in words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_images"] == len(FORMATS) + len(JPEGS), found


@pytest.mark.parametrize(("source", "out"), [("x.npz", "y.npz"), ("in", "y.npz"), ("in/a.jpg", "y.jpg")])
def test_save_as_is_refused_where_it_would_mean_nothing(tmp_path, checkpoint, capsys, source, out):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, SIDE, SIDE, 3), np.uint8))
    folder_of(tmp_path / "in", "a.jpg")
    words = ["refine", "--ckpt", checkpoint, "--input", tmp_path / source, "--out", tmp_path / out, "--eps", "1"]
    assert bigroc([str(word) for word in [*words, "--save-as", "png"]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "save_as: png is for folders of image files" in error
