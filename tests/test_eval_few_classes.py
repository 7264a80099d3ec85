"""AutoAttack's members by themselves: they take classifiers of any number of classes, from two on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval import robust_accuracy
from eval.cli import main
from eval.robust.attacks import Budget, plan_attack
from eval.robust.attacks.autoattack import ENSEMBLES
from eval.robust.stages import Ball, Stage, run_stages
from robust_models import Description, RobustClassifier, UserError, save, to_float
from robust_models.attacks import frozen_eval

pyautoattack = pytest.importorskip("pyautoattack")

ALONE = ("apgd-ce", "fab", "square")
EPS = {"l2": 1.2, "linf": 0.06, "l1": 16.0}
N = 24


class Brightness(nn.Module):
    """Logit c is highest where the mean of an image is about c / (num_classes - 1): known distances to the boundary."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.centres = nn.Buffer(torch.linspace(0.2, 0.8, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1, keepdim=True)
        return 40 * (2 * mean * self.centres - self.centres**2)


def classifier(num_classes: int) -> RobustClassifier:
    names = tuple("abcdefgh"[:num_classes])
    return RobustClassifier(Brightness(num_classes), Description("small", names, image_size=8)).eval()


def images(model: nn.Module) -> tuple[Tensor, Tensor]:
    """uint8 [24,3,8,8] of every brightness, and what the model says."""
    draws = torch.Generator().manual_seed(0)
    levels = torch.linspace(30, 225, N).view(N, 1, 1, 1)
    x_u8 = (levels + torch.randint(-20, 21, (N, 3, 8, 8), generator=draws)).round().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        return x_u8, model(to_float(x_u8)).argmax(1)


@pytest.fixture(autouse=True)
def _shorter(monkeypatch):
    """The standard's settings take minutes."""

    class Shorter(pyautoattack.AutoAttack):
        def _set_version(self, version="standard"):
            super()._set_version(version)
            self.apgd.n_iter, self.fab.n_iter, self.square.n_queries = 8, 5, 60
            self.apgd.n_restarts = self.fab.n_restarts = 1

    monkeypatch.setattr(pyautoattack, "AutoAttack", Shorter)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("norm", list(EPS))
@pytest.mark.parametrize("name", ALONE)
def test_a_member_is_pyautoattacks_and_breaks_what_it_breaks(name, norm, num_classes):
    model = classifier(num_classes)
    x_u8, y = images(model)
    plan = plan_attack(name, Budget(norm, EPS[norm], num_classes, seed=3))
    assert list(plan.attempts) == [name]
    assert "target_classes" not in plan.settings
    stages = [Stage("clean"), Stage(name, plan.attempts[name], Ball(norm, EPS[norm]))]
    clean, found = run_stages(model, x_u8, y, stages)

    theirs = pyautoattack.AutoAttack(model, norm=norm.capitalize(), eps=EPS[norm], seed=3, version="standard")
    theirs.attacks_to_run = [name]
    with frozen_eval(model), torch.no_grad():
        x_adv, _ = theirs.run_standard_evaluation(to_float(x_u8), y, batch_size=N)
        expected = model(x_adv).argmax(1) == y
    assert clean.survived.all()
    assert torch.equal(found.survived, expected)
    assert 0 < found.survived.sum() < N
    assert found.outside == 0


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", sorted(set(ENSEMBLES) - set(ALONE)))
def test_what_needs_targets_names_those_that_need_none(name, num_classes):
    with pytest.raises(UserError, match=r"needs at least 4 classes .* has \d; --attack apgd-ce, fab, square and pgd"):
        plan_attack(name, Budget("l2", 0.5, num_classes))


@pytest.mark.parametrize("name", ALONE)
def test_from_python_and_with_settings_that_do_not_fit(name):
    model = classifier(2)
    found = robust_accuracy(model, images(model), eps=EPS["l2"], attack=name, seed=3)
    assert (found.clean, found.settings["members"]) == (1.0, [name])
    assert 0 < found.robust < 1
    for wrong in ({"steps": 10}, {"step_size": 0.1}, {"restarts": 2}, {"random_start": False}):
        with pytest.raises(UserError, match=f"^{next(iter(wrong))}: .* does not fit attack {name}"):
            plan_attack(name, Budget("l2", 0.5, 2, **wrong))
    with pytest.raises(UserError, match=f"{name} is an attack in l2, linf, l1, but norm is fourier"):
        plan_attack(name, Budget("fourier", 0.5, 2))


@pytest.mark.parametrize("name", ALONE)
def test_on_the_command_line(name, tmp_path: Path, capsys):
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", ("cat", "dog"), image_size=16)).eval()
    save(model, tmp_path / "two.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", arr_0=pixels, arr_1=np.arange(6) % 2)
    words = f"robust --ckpt {tmp_path}/two.safetensors --data {tmp_path}/test.npz --eps 0.3 --device cpu --json"
    assert main([*words.split(), "--attack", name]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"][0]["after_each"].keys() == {name}
    assert found["robust_accuracy"] <= found["clean_accuracy"]
