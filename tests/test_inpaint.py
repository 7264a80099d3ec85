import numpy as np
import pytest
import torch
from PIL import Image

from refine.cli import main
from refine.synthesis import Ball, Network, Work, synthesize
from refine.synthesis.loop import faithful_outside, towards_class
from refine.synthesis.masks import centred, read_masks, rectangle
from refine.synthesis.tasks.inpaint import TASK, filled_smoothly, filled_with_mean
from robust_models import UserError, open_images, to_float, to_u8
from tests.tiny import tiny_pixels

pytestmark = pytest.mark.usefixtures("each_machine")

ROWS = torch.tensor([0, 1, 1])


@pytest.fixture
def images(tmp_path):
    pixels, labels = tiny_pixels(6)
    path = tmp_path / "images.npz"
    np.savez(path, arr_0=pixels, arr_1=labels)
    return path


def run(*argv, capsys):
    status = main(["--task", "inpaint", *map(str, argv)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.rsplit("\r", 1)[-1].strip()


def white_box(size=(16, 16), box=(slice(2, 8), slice(5, 9))):
    mask = np.zeros((*size, 3), np.uint8)
    mask[box] = 255
    return mask


def test_the_defaults_of_the_papers_table_at_224_pixels():
    assert TASK.defaults(224) == Ball(21.6, 0.1, 720)


def test_the_hole_is_filled_with_the_mean_of_what_is_known():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1
    mask[1, :, :, :2] = 1
    filled = filled_with_mean(x, mask)
    torch.testing.assert_close(filled[0, :, :4], x[0, :, 4:].mean((1, 2)).view(3, 1, 1).expand(3, 4, 8))
    torch.testing.assert_close(filled[1, :, :, :2], x[1, :, :, 2:].mean((1, 2)).view(3, 1, 1).expand(3, 8, 2))
    assert torch.equal(filled[0, :, 4:], x[0, :, 4:])
    assert torch.equal(filled[1, :, :, 2:], x[1, :, :, 2:])


def test_a_smooth_fill_is_harmonic():
    down, across = torch.meshgrid(torch.arange(12.0), torch.arange(9.0), indexing="ij")
    ramp = torch.stack([down, across, 3 * down - across]).unsqueeze(0) / 40
    mask = torch.zeros(1, 1, 12, 9)
    mask[..., 2:9, 3:8] = 1
    torch.testing.assert_close(filled_smoothly(torch.where(mask.bool(), torch.rand(()), ramp), mask), ramp)


def test_a_smooth_fill_at_the_edge_leaves_the_known_and_stays_between_them():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :5, 4:] = 1
    filled = filled_smoothly(x, mask)
    assert torch.equal(filled[1], x[1])
    known = ~mask[0, 0].bool()
    assert torch.equal(filled[0][:, known], x[0][:, known])
    assert (filled[0].flatten(1).amax(1) <= x[0][:, known].amax(1)).all()
    corner = filled[0, :, 0, 7]
    torch.testing.assert_close(corner, (filled[0, :, 0, 6] + filled[0, :, 1, 7]) / 2)


def test_masks_by_place():
    mask = rectangle("2,5,6,4", (16, 20))(ROWS)
    assert mask.shape == (3, 1, 16, 20)
    assert mask.sum() == 3 * 24
    assert mask[:, :, 2:8, 5:9].all()
    mask = centred(6, (16, 20))(ROWS)
    assert mask[:, :, 5:11, 7:13].all()
    assert mask.sum() == 3 * 36


def test_masks_from_files(images, tmp_path):
    given = open_images(images)
    Image.fromarray(white_box()).save(tmp_path / "one.png")
    expected = rectangle("2,5,6,4", (16, 16))(ROWS)
    assert torch.equal(read_masks(tmp_path / "one.png", given)(ROWS), expected)
    masks = np.stack([white_box(box=(slice(0, i + 1), slice(0, 3))) for i in range(6)])
    np.savez(tmp_path / "six.npz", arr_0=masks)
    at = read_masks(tmp_path / "six.npz", given)
    assert at(torch.tensor([0, 3, 5])).sum(dim=(1, 2, 3)).tolist() == [3, 12, 18]
    np.savez(tmp_path / "one.npz", arr_0=masks[2:3])
    assert read_masks(tmp_path / "one.npz", given)(ROWS).sum(dim=(1, 2, 3)).tolist() == [9, 9, 9]


@pytest.mark.parametrize("paste", [True, False])
def test_known_pixels_come_back_bit_for_bit_and_the_hole_is_the_loops(
    classifier, checkpoint, images, tmp_path, paste, capsys
):
    out = tmp_path / "filled.npz"
    flags = ["--ckpt", checkpoint, "--input", images, "--hole", 8, "--out", out, "--eps", 3, "--step-size", 0.5]
    flags += ["--precision", "fp32"]  # as the function computes below
    assert run(*flags, "--steps", 4, "--paste", str(paste).lower(), capsys=capsys)[0] == 0
    given, made = open_images(images).read(0, 6), open_images(out).read(0, 6)
    mask = centred(8, (16, 16))(torch.arange(6))
    outside = ~mask.bool().expand_as(given)
    assert torch.equal(given[outside], made[outside]) == paste
    x0, y = to_float(given), torch.from_numpy(open_images(images).labels)
    work = Work(filled_smoothly(x0, mask), y, faithful_outside(towards_class, x0, mask, 10))
    expected = to_u8(synthesize(Network(classifier), work, Ball(3, 0.5, 4)))
    compared = ~outside if paste else torch.ones_like(outside)
    assert (made[compared].int() - expected[compared].int()).abs().max() <= 1  # the command folds the batch norms


def test_the_hole_does_not_reach_the_result(checkpoint, images, tmp_path, capsys):
    """Nothing of the hidden pixels is seen: not even by the guess of the class."""
    with np.load(images) as file:
        hidden = file["arr_0"].copy()
    hidden[:, 4:12, 4:12] = 255 - hidden[:, 4:12, 4:12]
    np.savez(tmp_path / "other.npz", arr_0=hidden)
    for name in ("images", "other"):
        flags = ["--ckpt", checkpoint, "--input", tmp_path / f"{name}.npz", "--out", tmp_path / f"{name}.out.npz"]
        assert run(*flags, "--hole", 8, "--steps", 3, "--targets", "pseudo", capsys=capsys)[0] == 0
    one, other = (open_images(tmp_path / f"{name}.out.npz") for name in ("images", "other"))
    assert torch.equal(one.read(0, 6), other.read(0, 6))
    assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "mask: got none; give one of --mask, --rectangle, --hole"),
        (["--hole", "4", "--rectangle", "0,0,2,2"], "mask: got rectangle and hole; give one of"),
        (["--hole", "16"], "hole: 16 pixels leave nothing of images of 16x16"),
        (["--rectangle", "0,0,4"], "rectangle: '0,0,4' is not top,left,height,width"),
        (["--rectangle", "10,10,8,8"], "rectangle: 10,10,8,8 does not lie in images of 16x16"),
        (["--rectangle", "0,0,16,16"], "rectangle is white throughout; black is what is known"),
        (["--hole", "4", "--targets", "class:brid"], "did you mean bird?"),
        (["--hole", "4", "--targets", "class:zebra"], "(airplane, automobile, bird)"),
    ],
)
def test_what_does_not_fit_is_one_line(checkpoint, images, tmp_path, flags, message, capsys):
    status, _, error = run("--ckpt", checkpoint, "--input", images, "--out", tmp_path / "o.npz", *flags, capsys=capsys)
    assert status == 2
    assert message in error
    assert "\n" not in error


def test_masks_that_do_not_fit_are_told(images, tmp_path):
    given = open_images(images)
    Image.fromarray(white_box((16, 20))).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"mask: .*wide.png is 20x16, the images are 16x16; they must be equal"):
        read_masks(tmp_path / "wide.png", given)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(UserError, match=r"mask: .*black.png has no white pixel"):
        read_masks(tmp_path / "black.png", given)
    np.savez(tmp_path / "two.npz", arr_0=np.stack([white_box()] * 2))
    with pytest.raises(UserError, match=r"mask: .*two.npz holds 2 masks for 6 images; give one, or one for each"):
        read_masks(tmp_path / "two.npz", given)
    np.savez(tmp_path / "six.npz", arr_0=np.stack([white_box()] * 5 + [np.full((16, 16, 3), 255, np.uint8)]))
    with pytest.raises(UserError, match=r"six.npz, mask 5 is white throughout"):
        read_masks(tmp_path / "six.npz", given)
    with pytest.raises(UserError, match="no such file or folder"):
        read_masks(tmp_path / "nothing", given)


@pytest.mark.parametrize(("flags", "fill"), [("", filled_smoothly), ("--fill mean", filled_with_mean)])
def test_what_the_hole_begins_as(images, tmp_path, capsys, flags, fill):
    out = tmp_path / "filled.npz"
    words = ["--ckpt", "cifar10-l2-small", "--input", images, "--out", out, "--hole", "6", "--eps", "0", "--steps", "1"]
    assert run(*words, "--targets", "class:cat", *flags.split(), capsys=capsys)[0] == 0
    x = to_float(open_images(images).read(0, 6))
    mask = centred(6, (16, 16))(torch.arange(6))
    assert torch.equal(open_images(out).read(0, 6), to_u8(fill(x, mask)))
