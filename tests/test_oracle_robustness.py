"""Files of MadryLab robustness, written by the package itself (`make oracles`), give its logits: about 20 s."""

from pathlib import Path

import pytest
from torch import Tensor

from robust_models import Normalizer, load
from tests.oracles.compare import assert_same, written_by

CIFAR = Normalizer((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
FILES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet18thin": "resnet18_w48",
    "vgg11": "vgg11",
    "vgg19": "vgg19",
    "densenet121": "densenet121",
    "inceptionv3": "inception_v3",
    "imagenet_resnet18": "torchvision:resnet18",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    return written_by("robustness", tmp_path_factory.mktemp("robustness"))


@pytest.mark.parametrize(("file", "arch"), FILES.items())
def test_its_files_load_without_a_word_and_give_its_logits(written, file, arch):
    folder, expected = written
    model = load(folder / f"{file}.pt")
    imagenet = file.startswith("imagenet")
    assert_same(model, expected["imagenet_x" if imagenet else "x"], expected[file])
    assert model.description.arch == arch
    assert model.image_size == (224 if imagenet else 32)
    if not imagenet:
        mean, std = (
            tuple(round(value, 6) for value in values) for values in vars(model.description.normalizer).values()
        )
        assert Normalizer(mean, std) == CIFAR
    source = model.description.recipe["source"]
    assert source["layout"] == "MadryLab robustness, state dict under model"
    assert source["normalizer"] == "from the file"
    assert source["told"] == {"epoch": 150, "nat_prec1": pytest.approx(90.83)}
    assert {"optimizer", "schedule", "attacker.model"} <= {*source["ignored"]}


@pytest.mark.slow
def test_five_times_as_wide(tmp_path):
    """279 M parameters, 1.1 GB."""
    folder, expected = written_by("robustness", tmp_path, "wide")
    model = load(folder / "resnet18wide.pt")
    assert_same(model, expected["x"], expected["resnet18wide"])
    assert model.description.arch == "resnet18_w320"
