"""The example of docs/synthesis.md: what the page shows is what runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import new_task
from refine.synthesis import Network, Work, synthesize
from robust_models import open_images, to_float
from tests.tiny import tiny_pixels

ROOT = Path(__file__).parent.parent


def test_the_page_shows_the_example_as_it_is():
    text = (ROOT / "docs" / "synthesis.md").read_text()
    shown = text.split("```python\n")[1].split("```")[0]
    assert "TASK = Task(" in shown
    assert shown in (ROOT / "examples" / "new_task.py").read_text()


def test_the_page_names_defaults_that_are_there():
    """Each row of its table, against the tasks."""
    from importlib import import_module

    page = (ROOT / "docs" / "synthesis.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in page if line.startswith("| `")]
    assert len(rows) == 7
    for name, _, _, large, small in rows:
        task = import_module(f"refine.synthesis.tasks.{name.strip(' `')}").TASK
        of_large, of_small = task.defaults(224), task.defaults(32)
        assert large.split("(")[0].split() == f"{of_large.eps:g} / {of_large.step_size:g} / {of_large.steps}".split()
        assert small.split("(")[0].split() == f"{of_small.eps:g} / {of_small.step_size:g} / {of_small.steps}".split()


def test_the_example_colours_and_keeps_the_brightness(checkpoint, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", arr_0=tiny_pixels(3)[0])
    grey = new_task.luma(to_float(open_images(tmp_path / "in.npz").read(0, 3)))
    changes = []
    for weight in (0, 300):
        words = ["--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / f"{weight}.npz", "--json"]
        weights = ["--brightness", weight, "--smoothness", 0, "--steps", 12]
        assert new_task.main([str(word) for word in [*words, *weights]]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["task"], summary["n"], summary["eps"]) == ("colour", 3, 2)
        assert summary["confidence_after"] > summary["confidence_before"]
        found = to_float(open_images(tmp_path / f"{weight}.npz").read(0, 3))
        assert (found - new_task.luma(found)).abs().mean() > 0.003  # there are colours
        changes.append((new_task.luma(found) - grey).square().mean())
    assert changes[1] < changes[0] / 2


def test_brightness_and_roughness_by_hand():
    x = torch.zeros(2, 3, 8, 8)
    x[0] = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    x[1, 0, 4, 4] = 1
    assert new_task.luma(x)[0].unique().tolist() == pytest.approx([0.299 + 0.587 / 2])
    flat, dot = new_task.roughness(x).tolist()
    assert flat == pytest.approx(0, abs=1e-12)
    colour = np.array([1 - 0.299, -0.299, -0.299])  # of the dot; its mean over 25 pixels is a 25th of it
    assert dot == pytest.approx((colour**2).mean() * ((1 - 1 / 25) ** 2 + 24 / 25**2) / 64, rel=1e-5)


def test_a_task_on_tensors(classifier):
    """As the page's last line has it."""
    x, y = torch.rand(2, 3, 16, 16), torch.tensor([0, 2])
    work = Work(x, y, lambda model, x, y: new_task.cross_entropy(model(x), y))
    found = synthesize(Network(classifier), work, new_task.defaults(16))
    assert (new_task.cross_entropy(classifier(found), y) < new_task.cross_entropy(classifier(x), y)).all()
