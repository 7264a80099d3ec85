import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refine.cli import main
from refine.synthesis import Ball, Network, Work, synthesize
from refine.synthesis.loop import towards_class
from refine.synthesis.tasks.superres import TASK, enlarge
from robust_models import open_images, to_float, to_u8
from tests.tiny import tiny_pixels

pytestmark = pytest.mark.usefixtures("each_machine")


@pytest.fixture
def small(tmp_path):
    pixels, labels = tiny_pixels(6)
    path = tmp_path / "small.npz"
    np.savez(path, arr_0=pixels.reshape(6, 4, 4, 4, 4, 3).mean((2, 4)).astype(np.uint8), arr_1=labels)
    return path


def run(*argv, capsys):
    status = main(["--task", "superres", *map(str, argv)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.rsplit("\r", 1)[-1].strip()


def test_the_defaults_of_the_papers_table_at_224_pixels():
    assert TASK.defaults(224) == Ball(8, 1, 40)
    assert TASK.defaults(32).eps < TASK.defaults(224).eps  # a ball for fewer pixels


def test_enlarging():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    nearest = enlarge(x, 3, "nearest")
    assert nearest.shape == (2, 3, 12, 15)
    assert all(torch.equal(nearest[:, :, i::3, j::3], x) for i in range(3) for j in range(3))
    bicubic = enlarge(x, 3, "bicubic")
    assert torch.equal(bicubic, F.interpolate(x, (12, 15), mode="bicubic").clamp(0, 1))
    assert 0 <= bicubic.min() <= bicubic.max() <= 1


def test_the_command_is_the_loop_from_the_enlarged_image(classifier, checkpoint, small, tmp_path, capsys):
    out = tmp_path / "large.npz"
    flags = ["--ckpt", checkpoint, "--input", small, "--factor", 4, "--out", out, "--eps", 1, "--steps", 3]
    flags += ["--precision", "fp32"]  # as the function computes below
    assert run(*flags, "--step-size", 0.4, "--start-from", "bicubic", capsys=capsys)[0] == 0
    given, made = open_images(small), open_images(out)
    assert made.size == (16, 16)
    assert np.array_equal(made.labels, given.labels)
    start = enlarge(to_float(given.read(0, 6)), 4, "bicubic")
    work = Work(start, torch.from_numpy(given.labels), towards_class)
    expected = to_u8(synthesize(Network(classifier), work, Ball(1, 0.4, 3)))
    assert (made.read(0, 6).int() - expected.int()).abs().max() <= 1  # the command folds the batch norms


def test_a_guess_is_made_on_the_enlarged_image(classifier, checkpoint, small, tmp_path, capsys):
    out = tmp_path / "large.npz"
    flags = ["--ckpt", checkpoint, "--input", small, "--factor", 4, "--out", out, "--steps", 1, "--targets", "pseudo"]
    assert run(*flags, capsys=capsys)[0] == 0
    seen = classifier(enlarge(to_float(open_images(small).read(0, 6)), 4, "nearest")).argmax(1)
    assert np.array_equal(open_images(out).labels, seen.numpy())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--factor", "2.5"], "factor: input should be a valid integer"),
        (["--factor", "four"], "factor: input should be a valid integer"),
        (["--factor", "1"], "factor: input should be greater than or equal to 2; got 1"),
        ([], "factor: is required"),
        (["--factor", "2", "--targets", "cat"], "targets: 'cat' is none of given, pseudo, class:NAME"),
        (["--factor", "2", "--start-from", "linear"], "start_from: 'linear' is none of nearest, bicubic"),
    ],
)
def test_what_does_not_fit_is_one_line(checkpoint, small, tmp_path, flags, message, capsys):
    status, _, error = run("--ckpt", checkpoint, "--input", small, "--out", tmp_path / "o.npz", *flags, capsys=capsys)
    assert status == 2
    assert message in error
    assert "\n" not in error
