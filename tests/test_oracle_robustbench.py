"""Architectures of RobustBench's zoo, built by the package itself (`make oracles`), give its logits: about 15 s."""

from pathlib import Path

import pytest
from torch import Tensor

from robust_models import Normalizer, load
from tests.oracles.compare import assert_same, written_by

CIFAR10 = Normalizer((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CIFAR100 = Normalizer((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

# file, what the person says, the architecture, others with the same tensors
FILES = [
    ("wide_resnet", {}, "wide_resnet_16_2", []),
    ("wide_resnet_sub_block1", {}, "wide_resnet_10_4", []),
    ("wide_resnet_mu_sigma", {}, "wide_resnet_40_1", []),
    ("wide_resnet_silu", {"activation": "silu"}, "wide_resnet_10_2", []),
    ("robust_wide_resnet", {}, "wide_resnet_10_w32_64_48", []),
    ("dm_wide_resnet", {}, "dm_wide_resnet_16_2", []),
    ("dm_wide_resnet_relu", {"activation": "relu"}, "dm_wide_resnet_10_2", []),
    ("dm_wide_resnet_softplus", {"activation": "softplus"}, "dm_wide_resnet_10_2", []),
    ("dm_wide_resnet_cifar100", {}, "dm_wide_resnet_10_1", []),
    ("dm_preact_resnet", {}, "dm_preact_resnet18", []),
    ("preact_resnet_wong", {}, "preact_resnet18_nolastbn_xshortcut", ["preact_resnet18_nolastbn"]),
    ("preact_resnet_kuangliu", {"arch": "preact_resnet18_nolastbn"}, "preact_resnet18_nolastbn", []),
    ("preact_resnet_rice", {}, "preact_resnet18", ["preact_resnet18_xshortcut"]),
    ("preact_resnet_rice_cifar100", {}, "preact_resnet18", ["preact_resnet18_xshortcut"]),
    ("preact_resnet_xshortcut", {"arch": "preact_resnet18_xshortcut"}, "preact_resnet18_xshortcut", []),
    ("resnet", {}, "resnet34", []),
    ("resnext", {}, "resnext29_4x32d", []),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    return written_by("robustbench", tmp_path_factory.mktemp("robustbench"))


@pytest.mark.parametrize(("file", "said", "arch", "also"), FILES, ids=[file for file, *_ in FILES])
def test_its_architectures_load_and_give_its_logits(written, file, said, arch, also):
    folder, expected = written
    if file.startswith("dm_"):
        said = {**said, "normalize": CIFAR100 if file.endswith("cifar100") else CIFAR10}
    model = load(folder / f"{file}.pt", **said)
    assert_same(model, expected["x"], expected[file])
    assert model.description.arch == arch
    assert model.description.recipe["source"]["also_fits"] == also


def test_another_reading_of_the_same_tensors_gives_other_logits(written):
    folder, expected = written
    for file, arch in (
        ("preact_resnet_wong", "preact_resnet18_nolastbn"),
        ("preact_resnet_rice", "preact_resnet18_xshortcut"),
        ("dm_wide_resnet_relu", None),
    ):
        difference = load(folder / f"{file}.pt", arch=arch)(expected["x"]) - expected[file]
        assert difference.abs().max() > 1e-2
