"""eval.robust_accuracy and `eval robust`: any classifier, images of any size, outputs that are no logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval import robust_accuracy
from eval.cli import main
from robust_models import Dataset, Description, RobustClassifier, UserError, save, to_float

SIDE = 8


class Brightness(nn.Module):
    """Logits of two classes: dark and bright, with a margin of 2 * |mean - 1/2| in the mean pixel."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1)


def bright(count: int = 12, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """uint8 [N,3,S,S] of one grey level each, from dark to bright, and their classes."""
    levels = torch.linspace(10, 245, count).round()
    x_u8 = levels.view(-1, 1, 1, 1).expand(-1, 3, side, side).to(torch.uint8)
    return x_u8, (levels > 127.5).long()


def expected_share(x_u8: Tensor, eps: float) -> float:
    """Closed form: linf moves the mean of every pixel by eps."""
    return float(((to_float(x_u8).mean(dim=(1, 2, 3)) - 0.5).abs() > eps).double().mean())


GIVEN = {
    "a uint8 tensor and labels": lambda x, y: (x, y),
    "floats and an array of labels": lambda x, y: (x / 255, y.numpy()),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "a data set": lambda x, y: Dataset(x, y, ("dark", "bright"), "memory"),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_any_module_and_any_images_have_the_closed_form(given):
    x_u8, y = bright()
    found = robust_accuracy(Brightness(), given(x_u8, y), eps=0.2, norm="linf", steps=5)
    assert (found.n, found.clean) == (12, 1.0)
    assert found.robust == expected_share(x_u8, 0.2) == float(found.withstood.double().mean())
    assert found.robust_interval[0] < found.robust < found.robust_interval[1]
    assert found.settings["steps"] == 5
    assert found.warnings == ()


def test_a_name_and_a_file_are_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", arr_0=rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), arr_1=np.arange(9))
    found = robust_accuracy("cifar10-l2-small", tmp_path / "test.npz", eps=0.25, steps=2, limit=8, device="cpu")
    words = f"robust --ckpt cifar10-l2-small --data {tmp_path / 'test.npz'} --eps 0.25 --steps 2 --limit 8 --json"
    assert main([*words.split(), "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (found.n, found.clean, found.robust) == (8, printed["clean_accuracy"], printed["robust_accuracy"])


def test_a_module_is_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), Brightness()).train()
    x_u8, y = bright()
    assert robust_accuracy(model, (x_u8, y), eps=0.1, norm="linf").clean == 1  # without dropout
    assert model.training


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.full((4, 3, 8, 8), 3.0), torch.zeros(4).long()), "x runs from 3 to 3; expected uint8, or floats in"),
        ((torch.zeros(4, 8, 8), torch.zeros(4).long()), r"x is torch.float32 \[4, 8, 8\]; expected \[N,3,H,W\]"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(3).long()), r"y is torch.int64 \[3\]; expected a class index for each"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(4)), "expected a class index for each"),
        ((torch.zeros(4, 3, 8, 8), torch.full((4,), 2)), "labels run from 2 to 2, but the classifier has 2 classes"),
        ("absent.npz", "absent.npz"),
    ],
)
def test_what_does_not_fit_is_one_line(data, message):
    with pytest.raises(UserError, match=message):
        robust_accuracy(Brightness(), data, eps=0.1)


@pytest.mark.parametrize(
    ("norm", "eps", "message"), [("l7", 0.1, "norm: 'l7' is none of"), ("linf", 8, "did you mean")]
)
def test_balls_are_checked_as_everywhere(norm, eps, message):
    with pytest.raises(UserError, match=message):
        robust_accuracy(Brightness(), bright(), eps=eps, norm=norm)


# One rule of sizes.


def classifier(network: nn.Module, num_classes: int = 2, size: int = SIDE) -> RobustClassifier:
    names = tuple("abcdefghij"[:num_classes])
    return RobustClassifier(network, Description("test", names, image_size=size))


class OnlyItsSize(Brightness):
    """Refuses what has another size than 8 px."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2:] == (SIDE, SIDE)
        return super().forward(x)


@pytest.mark.parametrize("side", [4, 8, 13, 32])
def test_images_of_any_size_are_resized_inside_the_classifier(side):
    x_u8, y = bright(side=side)
    found = robust_accuracy(classifier(OnlyItsSize()), (x_u8, y), eps=0.2, norm="linf", steps=5)
    assert found.clean == 1
    assert found.robust == expected_share(x_u8, 0.2)


def test_the_clean_accuracy_of_resized_images_is_that_of_images_resized_before(tmp_path, capsys):
    torch.manual_seed(0)
    model = RobustClassifier.from_description(Description("preact_resnet10_w16", tuple("abcd"), image_size=16)).eval()
    save(model, tmp_path / "model.safetensors")
    x_u8 = torch.randint(0, 256, (20, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    small = F.interpolate(to_float(x_u8), (16, 16), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        y = model(small).argmax(1)
    np.savez(tmp_path / "large.npz", arr_0=x_u8.permute(0, 2, 3, 1).numpy(), arr_1=y.numpy())
    words = f"robust --ckpt {tmp_path / 'model.safetensors'} --data {tmp_path / 'large.npz'} --eps 0.1 --steps 2"
    assert main([*words.split(), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clean_accuracy"], found["image_size"], found["classifier_size"]) == (1.0, 40, 16)
    assert main([*words.split(), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("images of 40 px, resized inside the classifier to its 16 px") == 1


# Logits that are none.


class NotFinite(Brightness):
    """Adds `value` to the logits of images whose margin of brightness is above `above`."""

    def __init__(self, value: float, above: float) -> None:
        super().__init__()
        self.value, self.above = value, above

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.where(logits[:, 1:] > self.above, logits + self.value, logits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("above", "named"), [(0.45, "image 11"), (-1, "image 0, 1, 2, 3, 4 and 7 more")])
def test_logits_that_are_not_finite_name_the_images_and_are_never_robust(value, above, named):
    with pytest.raises(UserError, match=f"the logits of {named} are not finite"):
        robust_accuracy(NotFinite(value, above), bright(), eps=0.01, norm="linf")


def test_logits_that_an_attack_makes_nan_are_no_robust_accuracy_either():
    class Breaks(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.where((x * 255 % 1 > 1e-3).any(dim=(1, 2, 3))[:, None], torch.nan, logits)

    with pytest.raises(UserError, match=r"are not finite \(attack 1/1"):
        robust_accuracy(Breaks(), bright(), eps=0.01, norm="linf", steps=1, random_start=True, early_stop=False)


class Softmaxed(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class Halved(Softmaxed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize(
    ("network", "warned"),
    [
        (Softmaxed(), True),
        (nn.Sequential(Brightness(), nn.Softmax(dim=1)), True),
        (Brightness(), False),
        (Halved(), False),
    ],
)
def test_probabilities_are_warned_of_and_logits_are_not(network, warned):
    found = robust_accuracy(network, bright(), eps=0.1, norm="linf")
    assert any("probabilities, not logits" in warning for warning in found.warnings) == warned


# Programs: no parameters to ask for a device.


def program(tmp_path: Path, kind: str) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    x = torch.rand(2, 3, SIDE, SIDE)
    path = tmp_path / {"script": "m.pt", "trace": "m.pt", "export": "m.pt2"}[kind]
    if kind == "export":
        batch = torch.export.Dim("batch", min=1)
        torch.export.save(torch.export.export(network, (x,), dynamic_shapes=({0: batch},)), path)
    else:
        torch.jit.save(torch.jit.script(network) if kind == "script" else torch.jit.trace(network, x), path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["script", "trace", "export"])
def test_programs_are_measured(tmp_path, capsys, kind):
    path = program(tmp_path, kind)
    rng = np.random.default_rng(0)
    arrays = {"arr_0": rng.integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8), "arr_1": np.arange(6) % 3}
    np.savez(tmp_path / "test.npz", **arrays)
    words = f"robust --ckpt {path} --data {tmp_path / 'test.npz'} --image-size {SIDE} --class-names a,b,c --trust"
    status = main([*words.split(), "--normalize", "none", "--eps", "0.1", "--steps", "2", "--sanity", "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert json.loads(out)["n"] == 6


def test_a_module_without_parameters_is_measured():
    assert robust_accuracy(Brightness(), bright(), eps=0.1, norm="linf").n == 12


# Attacks on few classes.


@pytest.mark.parametrize("attack", ["apgd-ce", "fab", "square"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_untargeted_members_of_autoattack_take_few_classes(attack, num_classes):
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, num_classes))
    x_u8 = torch.randint(100, 156, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = classifier(network, num_classes)
    with torch.no_grad():
        y = model(to_float(x_u8)).argmax(1)
    found = robust_accuracy(model, (x_u8, y), eps=0.4, norm="linf", attack=attack)
    assert (found.clean, found.robust) == (1.0, 0.0)
    assert found.settings["members"] == [attack]
    assert robust_accuracy(model, (x_u8, y), eps=0.0, norm="linf", attack=attack).robust == 1


@pytest.mark.parametrize("attack", ["apgd", "autoattack"])
def test_ensembles_with_targets_say_which_attacks_take_few_classes(attack):
    with pytest.raises(UserError, match="--attack apgd-ce, fab, square and pgd take any number"):
        robust_accuracy(Brightness(), bright(), eps=0.1, attack=attack)
