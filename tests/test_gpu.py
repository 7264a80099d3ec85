"""What can only be seen on a GPU; `pytest -m gpu` there."""

import pytest
import torch

import refine
from robust_models import NORMS, PGD, load
from robust_models.runtime.device import place
from tests.test_train import tiny_config
from train.loop import train as run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_refinement_on_the_gpu_agrees_with_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = torch.rand(16, 3, 32, 32)
    expected = refine.refine(load("cifar10-l2-small"), x, eps=1.0)
    model = place(load("cifar10-l2-small"), torch.device("cuda"), "fp32")
    torch.testing.assert_close(refine.refine(model, x.cuda(), eps=1.0).cpu(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_bf16_attacks_stay_in_the_ball_and_raise_the_loss(norm):
    model = place(load("cifar10-l2-small"), torch.device("cuda"), "bf16")
    x = torch.rand(16, 3, 32, 32, device="cuda")
    y = model(x).argmax(1)
    x_adv = PGD(0.05, 0.02, 5, norm=norm, random_start=True)(model, x, y)
    assert (NORMS[norm].length(x_adv - x) <= 0.05 + 1e-5).all()
    assert (model(x_adv).softmax(1)[range(16), y] < model(x).softmax(1)[range(16), y]).all()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_training_learns_on_the_gpu(tmp_path, labelled_npz, compiled):
    fields = {"device": "cuda", "precision": "bf16", "compile": compiled, "epochs": "8"}
    summary = run(tiny_config(tmp_path / "run", labelled_npz, **fields))
    assert summary["validation"]["clean_accuracy"] > 0.6
