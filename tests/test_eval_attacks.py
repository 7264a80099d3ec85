"""Attacks by name: other people's libraries in our units, their results judged in ball and box, state and resuming."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eval.cli import main
from eval.robust.attacks import Budget, plan_attack
from eval.robust.attacks.advertorch import NORMS as ADVERTORCH
from eval.robust.attacks.advertorch import import_advertorch
from eval.robust.attacks.library import PlainLayout, global_randomness
from eval.robust.attacks.torchattacks import NORMS as TORCHATTACKS
from eval.robust.config import RobustConfig
from eval.robust.progress import StoredProgress
from eval.robust.stages import Ball, Stage, run_stages
from robust_models import NORMS, Description, RobustClassifier, UserError, load, open_images, save, to_float
from robust_models.attacks import frozen_eval
from robust_models.runtime.device import place

CLASSES = tuple("abcdefghij")
EPS = {"l2": 0.9, "linf": 0.045, "l1": 12.0}
N = 24


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n,3,16,16] and y [n]: one of ten colours under noise, close enough to one another to be confused."""
    draws = torch.Generator().manual_seed(seed)
    colours = torch.randint(60, 196, (10, 3, 1, 1), generator=torch.Generator().manual_seed(7))
    y = torch.randint(0, 10, (n,), generator=draws)
    noise = torch.randint(-40, 41, (n, 3, 16, 16), generator=draws)
    return (colours[y] + noise).clamp(0, 255).to(torch.uint8), y


@pytest.fixture(scope="module")
def model() -> RobustClassifier:
    """Ten classes, learnt for a moment: mostly right, and broken by small changes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10))
    model = RobustClassifier(network, Description("small", CLASSES, image_size=16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(150):
        x_u8, y = blobs(64, step + 1)
        loss = nn.functional.cross_entropy(model(to_float(x_u8)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return place(model.eval(), torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return blobs(N, 0)


def budget(norm: str, eps: float | None = None, **more) -> Budget:
    return Budget(norm, EPS[norm] if eps is None else eps, len(CLASSES), **more)


def robust(model: nn.Module, x_u8, y, name: str, spend: Budget, batch_size: int = 250):
    stages = [
        Stage(label, attempt, Ball(spend.norm, spend.eps))
        for label, attempt in plan_attack(name, spend).attempts.items()
    ]
    return run_stages(model, x_u8, y, [Stage("clean"), *stages], batch_size=batch_size)


def direct_autoattack(pyautoattack, model, images, norm: str, members: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and robust, bool [N], from pyautoattack's own evaluation."""
    attack = pyautoattack.AutoAttack(model, norm=norm.capitalize(), eps=EPS[norm], seed=3, version="standard")
    attack.attacks_to_run = members
    x, y = to_float(images[0]), images[1]
    with frozen_eval(model), torch.no_grad():
        x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=5)
        return model(x).argmax(1) == y, model(x_adv).argmax(1) == y


def check_autoattack(pyautoattack, model, images, norm: str) -> None:
    for name, members in (("apgd", ["apgd-ce", "apgd-t"]), ("autoattack", ["apgd-ce", "apgd-t", "fab-t", "square"])):
        clean, expected = direct_autoattack(pyautoattack, model, images, norm, members)
        found = robust(model, *images, name, budget(norm, seed=3), batch_size=5)
        assert torch.equal(found[0].survived, clean)
        assert torch.equal(found[-1].survived, expected)
        assert 0 < expected.sum() < clean.sum()
        assert [stage.outside for stage in found] == [0] * len(found)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_autoattack_is_pyautoattack(model, images, norm, monkeypatch):
    pyautoattack = pytest.importorskip("pyautoattack")

    class Shorter(pyautoattack.AutoAttack):
        def _set_version(self, version="standard"):
            super()._set_version(version)
            self.apgd.n_iter = self.apgd_targeted.n_iter = 8
            self.apgd.n_restarts = 1  # 5 in l1
            self.fab.n_iter, self.square.n_queries = 3, 20

    monkeypatch.setattr(pyautoattack, "AutoAttack", Shorter)
    check_autoattack(pyautoattack, model, images, norm)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_autoattack_in_full_is_pyautoattack(model, images, norm):
    check_autoattack(pytest.importorskip("pyautoattack"), model, images, norm)


def test_autoattack_has_its_own_settings():
    pytest.importorskip("pyautoattack")
    for wrong in ({"steps": 10}, {"step_size": 0.1}, {"restarts": 2}, {"random_start": False}):
        with pytest.raises(UserError, match=f"^{next(iter(wrong))}: .* does not fit attack autoattack"):
            plan_attack("autoattack", budget("l2", **wrong))
    with pytest.raises(UserError, match=r"needs at least 4 classes .* has 3"):
        plan_attack("apgd", Budget("l2", 0.5, 3))
    assert plan_attack("apgd", Budget("l2", 0.5, 5)).settings["target_classes"] == 4
    assert list(plan_attack("autoattack", budget("l2")).attempts) == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_torchattacks_autoattack_is_refused():
    with pytest.raises(UserError, match=r"10 steps where the standard runs 100.*--attack autoattack"):
        plan_attack("torchattacks:AutoAttack", budget("l2"))


def test_advertorch_leaves_torch_as_it_was():
    pytest.importorskip("pyautoattack")  # installed with the same extra
    for name in [name for name in sys.modules if name.startswith("advertorch")]:
        del sys.modules[name]
    gradcheck = importlib.import_module("torch.autograd.gradcheck")
    before = set(vars(gradcheck))
    attacks = import_advertorch()
    assert set(vars(gradcheck)) == before
    for name in ADVERTORCH:
        assert hasattr(attacks, name), name


# One of each kind; all of them run in test_every_class_runs.
SOME = [
    ("advertorch:L2PGDAttack", "l2"),
    ("advertorch:LinfPGDAttack", "linf"),
    ("advertorch:PGDAttack", "l2"),
    ("advertorch:L2FABAttack", "l2"),
    ("advertorch:FGSM", "linf"),
    ("foolbox:L2PGD", "l2"),
    ("foolbox:LinfPGD", "linf"),
    ("foolbox:DDNAttack", "l2"),
    ("foolbox:InversionAttack", "linf"),
    ("torchattacks:PGDL2", "l2"),
    ("torchattacks:PGD", "linf"),
    ("torchattacks:APGD", "l2"),
]


@pytest.mark.parametrize(("name", "norm"), SOME)
def test_a_library_attack_runs_and_says_with_what(model, images, name, norm):
    pytest.importorskip(name.split(":")[0].replace("advertorch", "pyautoattack"))
    x_u8, y = images[0][:8], images[1][:8]
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    plan = plan_attack(name, budget(norm))
    clean, attacked = robust(model, x_u8, y, name, budget(norm))
    assert attacked.survived.sum() <= clean.survived.sum()
    if "PGD" in name.replace("APGD", ""):
        assert attacked.survived.sum() < clean.survived.sum()
        assert attacked.outside == 0
        assert {20, 2.5 * EPS[norm] / 20} <= set(plan.settings.values())
    assert plan.settings["library"].startswith(name.split(":")[0])
    json.dumps(plan.settings)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # advertorch's DDN
@pytest.mark.parametrize(
    ("name", "norm"),
    [(f"advertorch:{name}", norm) for name, norms in ADVERTORCH.items() for norm in norms]
    + [(f"torchattacks:{name}", norm) for name, norms in TORCHATTACKS.items() for norm in norms],
)
def test_every_class_runs(model, images, name, norm):
    pytest.importorskip(name.split(":")[0].replace("advertorch", "pyautoattack"))
    x_u8, y = images[0][:4], images[1][:4]
    spend = budget(norm, steps=30) if "CarliniWagner" in name else budget(norm)
    clean, attacked = robust(model, x_u8, y, name, spend)
    assert attacked.survived.sum() <= clean.survived.sum()


def test_pgd_is_not_weaker_than_theirs():
    """On the embedded classifier at equal steps and step size, labels its own guesses: within sampling error."""
    pytest.importorskip("foolbox")
    pytest.importorskip("torchattacks")
    model = place(load("cifar10-l2-small"), torch.device("cpu"), "fp32")
    x_u8 = open_images(Path(__file__).parent.parent / "robust_models/pretrained/vae-cifar10.npz").read(0, 48)
    with torch.no_grad():
        y = model(to_float(x_u8)).argmax(1)
    spend = Budget("l2", 0.25, 10, steps=10)
    survivors = {
        name: int(robust(model, x_u8, y, name, spend)[-1].survived.sum())
        for name in ("pgd", "foolbox:L2PGD", "torchattacks:PGDL2")
    }
    assert 0 < survivors["pgd"] < len(y)
    assert survivors["pgd"] <= min(survivors.values()) + 2, survivors


def test_what_lies_outside_the_ball_does_not_count(model, images):
    x_u8, y = images
    far, near, broken = 1.0, 0.0, float("nan")

    def moves_by(size):
        def attempt(_model, x, _y, _index):
            return x + size * torch.randn_like(x)

        return attempt

    with torch.no_grad():
        clean = model(to_float(x_u8)).argmax(1) == y
    for size, some_outside in ((far, True), (near, False), (broken, True)):
        found = run_stages(model, x_u8, y, [Stage("clean"), Stage("noise", moves_by(size), Ball("l2", 0.3))])[-1]
        assert torch.equal(found.survived, clean)
        assert (found.outside > 0) == some_outside


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_ball_has_the_stated_tolerance(norm):
    x = torch.full((1, 3, 4, 4), 0.5)
    delta = NORMS[norm].steepest(torch.ones_like(x)) * 0.1
    assert Ball(norm, 0.1).holds(x + delta, x).all()
    assert Ball(norm, 0.1).holds(x + 1.00005 * delta, x).all()
    assert not Ball(norm, 0.1).holds(x + 1.001 * delta, x).any()


def test_a_minimum_norm_attack_breaks_only_what_it_reaches(model, images):
    pytest.importorskip("foolbox")
    x_u8, y = images[0][:8], images[1][:8]
    counts = []
    for eps in (1e-3, 0.9, 9.0):
        clean, attacked = robust(model, x_u8, y, "foolbox:DDNAttack", budget("l2", eps, steps=20))
        counts.append(int(attacked.survived.sum()))
        assert attacked.outside <= counts[-1]
    assert counts[0] == clean.survived.sum()
    assert counts[0] >= counts[1] >= counts[2] == 0


def test_gradients_come_in_plain_order(model):
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    (plain,) = torch.autograd.grad(PlainLayout(model)(x).sum(), x)
    (found,) = torch.autograd.grad(model(x).sum(), x)
    assert plain.is_contiguous()
    assert torch.equal(plain, found)


def test_global_randomness_is_seeded_and_put_back():
    def draw(*seed):
        with global_randomness(seed, torch.device("cpu")):
            return float(torch.rand(())) + float(np.random.rand())  # noqa: NPY002

    torch.manual_seed(5)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert draw(1, 0, 0) == draw(1, 0, 0) != draw(1, 1, 0)
    assert torch.equal(torch.rand(3), after)


WRONG = [
    ("foolbox:L2PDG", {}, "foolbox has no attack 'L2PDG'.*did you mean foolbox:L2PGD"),
    ("foolbox:LinfPGD", {}, "foolbox:LinfPGD is an attack in linf, but norm is l2"),
    ("foolbox:L1PGD", {}, "foolbox:L1PGD is an attack in .*, but norm is l2"),
    ("foolbox:DDNAttack", {"step_size": 0.1}, "^step_size: foolbox:DDNAttack takes none"),
    ("advertorch:L2PGD", {}, "did you mean advertorch:L2PGDAttack"),
    ("advertorch:FGSM", {}, "advertorch:FGSM is an attack in linf, but norm is l2"),
    ("advertorch:FGM", {"steps": 4}, "^steps: advertorch:FGM takes none"),
    ("torchattacks:PGDL1", {}, "did you mean torchattacks:PGDL2"),
    ("torchattacks:PGD", {}, "torchattacks:PGD is an attack in linf, but norm is l2"),
    ("torchattacks:APGD", {"restarts": 2}, "^restarts: 2 runs of torchattacks:APGD would all be the same"),
]


@pytest.mark.parametrize(("name", "more", "message"), WRONG)
def test_wrong_names_norms_and_settings_are_one_line(name, more, message):
    pytest.importorskip(name.split(":")[0].replace("advertorch", "pyautoattack"))
    with pytest.raises(UserError, match=message) as caught:
        plan_attack(name, budget("l2", **more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["autoattack", "foolbox:L2PGD", "torchattacks:PGDL2", "advertorch:L2PGDAttack"])
def test_a_missing_library_says_how_to_get_it(monkeypatch, name):
    package = {"autoattack": "pyautoattack"}.get(name, name.split(":")[0])
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}.*pip install"):
        plan_attack(name, budget("l2"))


def test_names_are_checked_with_the_config():
    config = {"ckpt": "c", "data": "d", "eps": 0.5}
    assert RobustConfig(**config, attack="foolbox:Anything").attack == "foolbox:Anything"
    for name, message in (
        ("fgsm", "'fgsm' is none of pgd, apgd, autoattack, apgd-ce, fab, square, advertorch:CLASS"),
        ("autoatack", "did you mean autoattack"),
        ("foolbx:L2PGD", "did you mean foolbox:CLASS"),
        ("foolbox:", "is none of"),
        ("foolbox", "did you mean foolbox:CLASS"),
        ("pgd:L2", "is none of"),
    ):
        with pytest.raises(ValueError, match=message):
            RobustConfig(**config, attack=name)


@pytest.mark.parametrize(
    ("given", "radii"),
    [(0.5, (0.5,)), ("8/255", (8 / 255,)), ("1,0.25", (0.25, 1.0)), ([1, "1/2", 0.5], (0.5, 1.0)), ("0", (0.0,))],
)
def test_radii(given, radii):
    assert RobustConfig(ckpt="c", data="d", eps=given).radii == radii


@pytest.mark.parametrize("given", [-1, "0.5,-1", "x", "1/0", "0.5,", [], True, float("nan"), "inf", "a/b", {}])
def test_radii_that_are_none(given):
    with pytest.raises(ValueError, match=r"input should be|no radius given"):
        RobustConfig(ckpt="c", data="d", eps=given)


# The command line, its state and its several radii.


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory) -> Path:
    """A checkpoint with random weights whose batch norm has seen the images, and its own guesses as labels."""
    root = tmp_path_factory.mktemp("attacks")
    torch.manual_seed(0)
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", CLASSES, image_size=16)).train()
    with torch.no_grad():
        for _ in range(30):
            model(to_float(images[0]))
        y = model.eval()(to_float(images[0])).argmax(1)
    y[::9] = (y[::9] + 1) % len(CLASSES)
    save(model, root / "model.safetensors")
    np.savez(root / "test.npz", arr_0=images[0].numpy().transpose(0, 2, 3, 1), arr_1=y.numpy())
    return root


def words(folder: Path, *more: object) -> list[str]:
    fixed = ["robust", "--ckpt", folder / "model.safetensors", "--data", folder / "test.npz", "--device", "cpu"]
    return [str(word) for word in (*fixed, "--batch-size", 5, "--steps", 3, *more)]


def result(capsys, folder: Path, *more: object) -> dict:
    assert main(words(folder, *more, "--json")) == 0
    return json.loads(capsys.readouterr().out)


def test_several_radii_in_one_call(folder, capsys):
    summary = result(capsys, folder, "--eps", "0.2,0.02,0,0.05")
    shares = [entry["robust_accuracy"] for entry in summary["results"]]
    assert summary["eps"] == [entry["eps"] for entry in summary["results"]] == [0, 0.02, 0.05, 0.2]
    assert shares[0] == summary["clean_accuracy"]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert "robust_accuracy" not in summary
    for entry in summary["results"]:
        alone = result(capsys, folder, "--eps", entry["eps"])
        assert alone["robust_accuracy"] >= entry["robust_accuracy"]
        assert alone["results"][0]["robust_accuracy"] == alone["robust_accuracy"]
        assert alone["interval"][0] <= alone["robust_accuracy"] <= alone["interval"][1]
        assert alone["eps"] == entry["eps"]
    assert main(words(folder, "--eps", "0.1,0.3")) == 0
    told = capsys.readouterr().out
    assert "an image broken at a smaller eps counts as broken at the larger ones" in told
    assert told.count("robust accuracy") == 2


def test_a_run_that_was_cut_off_ends_like_one_that_was_not(model, images, tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")  # installed with the same extra
    attempts = {
        eps: plan_attack("advertorch:L2PGDAttack", budget("l2", eps, steps=2, restarts=2)).attempts
        for eps in (0.4, 0.8)
    }
    chain = [Stage(label, attempt, Ball("l2", eps)) for eps in attempts for label, attempt in attempts[eps].items()]

    def run(path: Path) -> list[list[bool]]:
        progress = StoredProgress.open(path, {"n": N})
        stages = run_stages(model, *images, [Stage("clean"), *chain], batch_size=5, progress=progress)
        return [stage.survived.tolist() for stage in stages]

    whole = run(tmp_path / "whole.json")
    assert sum(whole[0]) > sum(whole[-1]) > 0
    written = StoredProgress.save
    for stop in (1, 7, 12):
        saved = []

        def save_and_stop(self, saved=saved, stop=stop):
            written(self)
            saved.append(self)
            if len(saved) == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(StoredProgress, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / f"{stop}.json")
        monkeypatch.setattr(StoredProgress, "save", written)
        assert run(tmp_path / f"{stop}.json") == whole
    monkeypatch.setattr(StoredProgress, "save", lambda self: pytest.fail("nothing is left to do"))
    assert run(tmp_path / "whole.json") == whole


def test_the_same_command_goes_on(folder, tmp_path, capsys):
    command = ["--eps", "0.03,0.1", "--state", tmp_path / "state.json"]
    first = result(capsys, folder, *command)
    assert result(capsys, folder, *command) == first
    assert (
        result(capsys, folder, *command[:2])["results"][1]["robust_accuracy"] == first["results"][1]["robust_accuracy"]
    )


def test_a_state_of_another_run_is_refused(folder, tmp_path, capsys):
    state = tmp_path / "state.json"
    result(capsys, folder, "--eps", 0.1, "--state", state)
    before = state.read_text()
    other = tmp_path / "other.npz"
    with np.load(folder / "test.npz") as arrays:
        np.savez(other, arr_0=arrays["arr_0"][::-1], arr_1=arrays["arr_1"][::-1])
    for change, message in (
        (["--eps", 0.2], "eps was [0.1] there and is [0.2] here"),
        (["--data", other], "data was"),
        (["--limit", 7], "data was"),
        (["--seed", 1], "seed was 0 there and is 1 here"),
        (["--batch-size", 6], "batch_size was 5 there and is 6 here"),
        (["--normalize", "imagenet"], "normalize was null there"),
        (["--attack", "apgd"], "attack was"),
    ):
        if "apgd" in change:
            pytest.importorskip("pyautoattack")
            change = [*change, "--steps", "null"]
        assert main(words(folder, "--eps", 0.1, "--state", state, *change)) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: state: {state} belongs to another run: "), err
        assert message in err
        assert err.count("\n") == 1
        assert state.read_text() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x89PNG", '{"_attacks_to_run": "x"}'])
def test_a_file_that_is_no_state(folder, tmp_path, capsys, content):
    state = tmp_path / "state.json"
    state.write_text(content)
    assert main(words(folder, "--eps", 0.1, "--state", state)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: state: {state} ")
    assert "name another file" in err
    assert state.read_text() == content


def test_the_summary_tells_attack_and_settings(folder, capsys):
    pytest.importorskip("foolbox")
    summary = result(capsys, folder, "--eps", 0.1, "--attack", "foolbox:L2PGD", "--sanity", "--limit", 10)
    assert summary["settings"]["steps"] == 3
    assert summary["settings"]["abs_stepsize"] == pytest.approx(2.5 * 0.1 / 3)
    assert summary["settings"]["eps"] == 0.1
    assert summary["settings"]["library"].startswith("foolbox ")
    assert summary["sanity"]["n"] == round(10 * summary["clean_accuracy"])
    assert main(words(folder, "--eps", 0.1, "--attack", "foolbox:L2PGD", "--sanity")) == 0
    told = capsys.readouterr().out
    assert "foolbox:L2PGD of foolbox" in told
    assert "sanity checks" in told or "warning:" in told
