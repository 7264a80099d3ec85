"""CLIPs that open_clip built and saved (`make oracles`) give its embeddings: about 15 s."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_models import load, save
from tests.oracles.compare import assert_same, written_by

# file, what the person says, the architecture
FILES = [
    ("vit_b_32_quickgelu", {}, "clip_vit_p32_i224_w768_l12_d512_linear"),
    ("vit_b_32", {"activation": "gelu"}, "clip_vit_p32_i224_w768_l12_d512_linear"),
    ("vit_h_14_quickgelu", {}, "clip_vit_p14_i28_w1280_l1_d1024_linear"),
    ("vit_g_14", {"activation": "gelu"}, "clip_vit_p14_i28_w1408_l1_d1024_linear"),
    ("vit_bigg_14", {"activation": "gelu"}, "clip_vit_p14_i28_w1664_l1_d1280_linear"),
    ("rn50_quickgelu", {}, "clip_resnet_b3_4_6_3_i64_w32_d1024_linear"),
    ("rn101", {}, "clip_resnet_b3_4_23_3_i96_w16_d512_linear"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    return written_by("open_clip", tmp_path_factory.mktemp("open_clip"))


@pytest.mark.parametrize(("file", "said", "arch"), FILES, ids=[file for file, *_ in FILES])
def test_its_image_encoders_load_and_give_its_embeddings(written, file, said, arch, tmp_path):
    """As the logits of a head that passes embeddings on."""
    folder, expected = written
    embedding = expected[file].shape[1]
    torch.save({"weight": torch.eye(embedding), "bias": torch.zeros(embedding)}, tmp_path / "head.pt")
    model = load(folder / f"{file}.pt", head=tmp_path / "head.pt", quiet=True, **said)
    assert model.description.arch == arch
    assert model.image_size == expected[f"{file} x"].shape[-1]
    assert_same(model, expected[f"{file} x"], expected[file])
    save(model, tmp_path / "ours.safetensors")
    assert_same(load(tmp_path / "ours.safetensors", quiet=True), expected[f"{file} x"], expected[file])


def test_the_other_gelu_gives_other_embeddings(written, tmp_path):
    folder, expected = written
    torch.save({"weight": torch.eye(512), "bias": torch.zeros(512)}, tmp_path / "head.pt")
    model = load(folder / "vit_b_32.pt", head=tmp_path / "head.pt", quiet=True)
    with torch.no_grad():
        difference = model(expected["vit_b_32 x"]) - expected["vit_b_32"]
    assert difference.abs().max() > 1e-3 * expected["vit_b_32"].abs().max()
