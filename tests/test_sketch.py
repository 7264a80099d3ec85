"""Sketch: drawings of any kind come out as the classifier's size on white paper, and move towards the class."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from refine.cli import main
from refine.synthesis.drawings import fitted, open_drawings
from refine.synthesis.tasks.sketch import TASK
from robust_models import UserError, open_images
from tests.tiny import tiny_pixels


def run(*words):
    return main([str(word) for word in ["--task", "sketch", *words]])


def test_transparent_is_white(tmp_path):
    """A black drawing whose hidden background is red: half transparent is half way to white."""
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[4:8, 4:8] = (0, 0, 0, 255)
    rgba[8:12, 8:12] = (0, 0, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "drawing.png")
    drawings = open_drawings(tmp_path / "drawing.png", 16)
    expected = torch.ones(1, 3, 16, 16)
    expected[..., 4:8, 4:8] = 0
    expected[..., 8:12, 8:12] = 0.8
    assert drawings.names == ["drawing"]
    torch.testing.assert_close(drawings.read(0), expected, rtol=0, atol=1e-6)


def test_grey_and_deep_drawings(tmp_path):
    Image.fromarray(np.full((16, 16), 51, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((16, 16), 13107, np.uint16)).save(tmp_path / "b.png")  # 51 * 257
    drawings = open_drawings(tmp_path, 16)
    for i in range(2):
        torch.testing.assert_close(drawings.read(i), torch.full((1, 3, 16, 16), 0.2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 16), (16, 41), (3, 5), (200, 100)])
def test_drawings_are_made_square_with_white_and_scaled(height, width):
    x = fitted(torch.zeros(1, 3, height, width), 16)
    assert x.shape == (1, 3, 16, 16)
    ink = (1 - x).mean().item()  # as much of the paper is black as was
    assert ink == pytest.approx(height * width / max(height, width) ** 2, abs=0.05)
    assert torch.allclose(x[..., 7:9, 7:9], torch.zeros(()), atol=1e-6)


def test_a_drawing_that_fits_is_not_touched():
    x = torch.rand(1, 3, 16, 16)
    assert fitted(x, 16) is x


def test_a_folder_of_drawings_of_any_sizes_and_a_set(tmp_path, labelled_npz):
    for name, size in (("b.png", (30, 10)), ("a10.png", (16, 16)), ("a9.png", (50, 60))):
        (tmp_path / "drawings").mkdir(exist_ok=True)
        Image.new("L", size, 0).save(tmp_path / "drawings" / name)
    drawings = open_drawings(tmp_path / "drawings", 16)
    assert drawings.names == ["a9", "a10", "b"]
    assert [drawings.read(i).shape for i in range(3)] == [(1, 3, 16, 16)] * 3
    drawings = open_drawings(labelled_npz, 16)
    assert len(drawings.names) == 96
    assert torch.equal(drawings.read(3), open_images(labelled_npz).read(3, 4) / 255)


def test_the_command_makes_an_image_of_the_class(checkpoint, tmp_path, capsys):
    Image.fromarray(tiny_pixels(1)[0][0]).resize((50, 20)).save(tmp_path / "drawing.png")
    out = tmp_path / "out"
    words = ["--ckpt", checkpoint, "--input", tmp_path / "drawing.png", "--out", out, "--target", "Bird"]
    status = run(*words, "--eps", 2, "--steps", 6, "--grid", tmp_path / "grid.png", "--json")
    captured = capsys.readouterr()
    assert status == 0, captured.err
    summary = json.loads(captured.out)
    assert (summary["n"], summary["size"]) == (1, [16, 16])
    assert summary["confidence_after"] > summary["confidence_before"]
    assert [path.relative_to(out).as_posix() for path in out.rglob("*.png")] == ["bird/drawing.png"]


def test_defaults_are_the_papers_at_224_pixels():
    large = TASK.defaults(224)
    assert (large.eps, large.step_size, large.steps, large.norm) == (40, 1, 60, "l2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--target": "brid"}, "target: class 'brid' is none of the classifier's 3 classes; did you mean bird?"),
        ({"--input": "nowhere.png"}, "nowhere.png: no such file or folder"),
        ({"--input": "broken.png"}, "broken.png: cannot be decoded"),
    ],
)
def test_bad_input_is_one_line(checkpoint, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.new("RGB", (16, 16)).save("drawing.png")
    flags = {"--ckpt": checkpoint, "--input": "drawing.png", "--out": "out.npz", "--target": "bird", **change}
    assert run(*(word for pair in flags.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_target_is_needed(checkpoint, capsys):
    assert run("--ckpt", checkpoint, "--input", "x.png", "--out", "o.npz") == 2
    assert "target: is required" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file or folder"):
        open_drawings(checkpoint.parent / "none", 16)
