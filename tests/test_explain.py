"""What a classifier sees: probabilities and gradients by hand, as the command writes them."""

import json

import numpy as np
import pytest
import torch

from refine.cli import main
from refine.network import Network
from refine.synthesis.tasks.explain import drawn, explain
from robust_models import open_images, to_float
from tests.tiny import CLASSES, tiny_pixels


def run(*words):
    return main([str(word) for word in ["--task", "explain", *words]])


def test_a_gradient_is_drawn_around_grey_up_to_its_strongest_numbers():
    gradient = torch.zeros(2, 3, 10, 10)
    gradient[0, 0, 0] = torch.arange(10) / 10
    gradient[1, 1, 3, 3:6] = torch.tensor([-2.0, 4.0, 8.0])
    found = drawn(gradient)
    assert found[0, 0, 0].tolist() == pytest.approx(
        [0.5 + 0.5 * min(1, i / 7) for i in range(10)]
    )  # 298 of 300 numbers are at most 0.7
    assert found[1, 1, 3, 3:6].tolist() == [0.0, 1.0, 1.0]
    assert found[1, 0].unique().tolist() == [0.5]
    assert drawn(torch.zeros(1, 3, 4, 4)).unique().tolist() == [0.5]


def test_it_is_the_gradient_of_the_class(classifier):
    """A step along what is drawn, scaled back, raises the class; parameters collect nothing."""
    x, y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    found = explain(Network(classifier), x, y)
    torch.testing.assert_close(found.probs, classifier(x).softmax(1), rtol=1e-5, atol=1e-6)
    step = (to_float(found.gradient_u8) - 0.5) * 1e-2
    with torch.no_grad():
        rise = classifier(x + step).log_softmax(1) - classifier(x).log_softmax(1)
    assert (rise.gather(1, y[:, None]) > 0).all()
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize("targets", [None, "class:bird"])
def test_the_command_writes_gradients_and_probabilities(classifier, checkpoint, tmp_path, capsys, targets):
    np.savez(tmp_path / "in.npz", arr_0=tiny_pixels(5)[0])
    words = ["--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / "out.npz", "--json"]
    assert run(*words, *(["--targets", targets] if targets else [])) == 0
    summary = json.loads(capsys.readouterr().out)
    x = to_float(open_images(tmp_path / "in.npz").read(0, 5))
    y = classifier(x).argmax(1) if targets is None else torch.full((5,), 2)
    written, expected = open_images(tmp_path / "out.npz"), explain(Network(classifier), x, y)
    assert (written.read(0, 5).int() - expected.gradient_u8.int()).abs().max() <= 1  # folded, in one block
    assert written.labels.tolist() == y.tolist()
    rows = [json.loads(line) for line in (tmp_path / "out.npz.manifest.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == [CLASSES[i] for i in y]
    for row, probs in zip(rows, expected.probs, strict=True):
        assert [row["probs"][name] for name in CLASSES] == pytest.approx(probs.tolist(), abs=1e-5)
    assert (summary["n"], summary["seen_as_target"]) == (5, int((classifier(x).argmax(1) == y).sum()))
    assert run(*words, *(["--targets", targets] if targets else [])) == 0
    assert json.loads(capsys.readouterr().out)["already_done"]


def test_another_folder_is_not_replaced(checkpoint, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", arr_0=tiny_pixels(2)[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    words = ["--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / "mine"]
    assert run(*words) == run(*words, "--overwrite") == 2
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"
    assert "Traceback" not in capsys.readouterr().err
