import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from robust_models.grids import CELL, difference_row, save_rows, save_trajectory

GENERATOR = torch.Generator().manual_seed(0)
BEFORE = torch.randint(100, 150, (3, 3, 16, 16), generator=GENERATOR).to(torch.uint8)


def contains(picture: Image.Image, pixels: torch.Tensor) -> bool:
    """Whether the picture shows this image, enlarged to a cell."""
    factor = CELL // pixels.shape[-1]
    wanted = pixels.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
    canvas = np.asarray(picture.convert("RGB"))
    windows = np.lib.stride_tricks.sliding_window_view(canvas, (CELL, CELL), axis=(0, 1))
    corners = np.argwhere((windows[..., 0, 0] == wanted[0, 0]).all(axis=2))
    return any(np.array_equal(windows[y, x].transpose(1, 2, 0), wanted) for y, x in corners)


@pytest.mark.parametrize(("change", "factor"), [(1, 20), (10, 12), (30, 4), (100, 1)])
def test_the_difference_is_amplified_around_grey_by_the_factor_it_names(change, factor):
    after = BEFORE.clone()
    after[:, 0, :8] += change
    after[:, 1, :8] -= change
    name, row = difference_row(BEFORE, after)
    assert name == f"change x{factor}"
    assert row.dtype == torch.uint8
    assert (row[:, 0, :8] == min(128 + factor * change, 255)).all()
    assert (row[:, 1, :8] == max(128 - factor * change, 0)).all()
    assert (row[:, 2] == 128).all()
    assert (row[:, :, 8:] == 128).all()


def test_no_difference_is_grey():
    assert (difference_row(BEFORE, BEFORE)[1] == 128).all()


def test_a_few_strong_changes_do_not_hide_the_others():
    after = BEFORE.clone()
    after += 4
    after[0, 0, 0, 0] = 255
    assert difference_row(BEFORE, after)[0] == "change x20"


def test_rows_show_every_image(tmp_path):
    after = BEFORE.flip(3)
    difference = difference_row(BEFORE, after)
    rows = [("before", BEFORE), ("refined", after), difference]
    save_rows(tmp_path / "grid.png", rows, ["cat\n1% > 90%"] * 3, columns=2)
    with Image.open(tmp_path / "grid.png") as picture:
        assert all(contains(picture, image) for _, row in rows for image in row)


def test_a_trajectory_is_a_strip_with_one_row_per_step(tmp_path):
    frames = [BEFORE + 10 * t for t in range(4)]
    save_trajectory(tmp_path / "steps.png", frames, ["cat", "dog", "ship"])
    save_rows(tmp_path / "rows.png", [(f"step {t}", frame) for t, frame in enumerate(frames)], ["cat", "dog", "ship"])
    assert (tmp_path / "steps.png").read_bytes() == (tmp_path / "rows.png").read_bytes()


def test_a_wide_trajectory_does_not_wrap(tmp_path):
    frames = [torch.zeros(10, 3, 16, 16, dtype=torch.uint8)] * 2
    save_trajectory(tmp_path / "steps.png", frames, [""] * 10)
    with Image.open(tmp_path / "steps.png") as picture:
        assert picture.width > 10 * CELL
        assert picture.height < 3 * CELL


def test_a_trajectory_is_an_animation_where_the_name_says_so(tmp_path):
    shades = (0, 80, 160, 240)
    frames = [torch.full((2, 3, 16, 16), shade, dtype=torch.uint8) for shade in shades]
    save_trajectory(tmp_path / "steps.GIF", frames, ["cat", "dog"])
    with Image.open(tmp_path / "steps.GIF") as animation:
        assert animation.format == "GIF"
        assert animation.info["loop"] == 0
        middles = [f.convert("RGB").getpixel((f.width - 50, 50)) for f in ImageSequence.Iterator(animation)]
    assert [pixel[0] for pixel in middles] == pytest.approx(shades, abs=2)
