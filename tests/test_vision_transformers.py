"""Feature spaces of vision transformers: the network as its authors have it, from whatever file holds it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robust_models import UserError
from robust_models.features import open_features
from robust_models.features.vision_transformers import SPECS, TransformerFeatures

timm = pytest.importorskip("timm")
SMALL = "vit_small_patch14_dinov2"  # the layout of the large one, a fourteenth of its weights


@pytest.fixture(scope="module")
def weights():
    """As Meta's file has them: for 518 px, with the token of masked patches."""
    torch.manual_seed(0)
    state = timm.create_model(SMALL, img_size=518, num_classes=0).state_dict()
    return {name: 0.05 * torch.randn_like(value) for name, value in state.items()}


def test_features_are_those_of_the_network_at_224_pixels(tmp_path, weights):
    path = tmp_path / "small.pth"
    torch.save({**weights, "mask_token": torch.zeros(1, 384)}, path)
    x_u8 = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = TransformerFeatures("dinov2", device=torch.device("cpu"), model=f"{SMALL}.lvd142m", weights=path)(x_u8)

    network = timm.create_model(SMALL, img_size=518, num_classes=0, dynamic_img_size=True).eval()
    network.load_state_dict(weights)
    x = F.interpolate(x_u8.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network((x - mean) / std)
    assert found.shape == (2, 384)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("content", [b"<html>not found</html>", None])
def test_a_file_of_something_else_is_one_line(tmp_path, content):
    path = tmp_path / "small.pth"
    torch.save({"weight": torch.zeros(3)}, path) if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"features: .*small\.pth holds no weights of DINOv2 \(.*\); download https"):
        TransformerFeatures("dinov2", device=torch.device("cpu"), model=f"{SMALL}.lvd142m", weights=path)


def clip_reading(x_u8: torch.Tensor, side: int) -> torch.Tensor:
    x = F.interpolate(x_u8.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 255) / 255
    values = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in values)
    return (x - mean) / std


@pytest.fixture
def some_images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_clips_embeddings_are_those_of_the_file_that_transformers_wrote(tmp_path, some_images, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(SPECS, "clip", replace(SPECS["clip"], side=32))
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, patch_size=8, image_size=32,
        projection_dim=16, hidden_act="quick_gelu",
    )  # fmt: skip
    network = transformers.CLIPVisionModelWithProjection(config).eval()
    torch.save({**network.state_dict(), "text_projection.weight": torch.zeros(3)}, tmp_path / "clip.bin")
    features = open_features(f"clip:{tmp_path / 'clip.bin'}")
    with torch.no_grad():
        expected = network(clip_reading(some_images, 32)).image_embeds
    assert features.dim == 16
    torch.testing.assert_close(features(some_images), expected, rtol=1e-4, atol=1e-4)


def test_clips_embeddings_are_those_of_a_file_of_open_clip(tmp_path, some_images, monkeypatch):
    monkeypatch.setitem(SPECS, "clip", replace(SPECS["clip"], side=224))
    torch.manual_seed(0)
    network = timm.create_model("vit_xsmall_patch16_clip_224", num_classes=20).eval()
    torch.save(network.state_dict(), tmp_path / "small.pth")
    model = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    found = TransformerFeatures("clip", device=torch.device("cpu"), model=model, weights=tmp_path / "small.pth")
    with torch.no_grad():
        expected = network(clip_reading(some_images, 224))
    assert found.dim == 20
    torch.testing.assert_close(found(some_images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_a_file_that_is_not_there_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match=r"features: no file .*absent\.pth; download https://"):
        open_features(f"{name}:{tmp_path / 'absent.pth'}")


def test_a_file_of_no_clip_is_one_line(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"features: .*none\.pth holds no weights of CLIP .*; download https://"):
        open_features(f"clip:{tmp_path / 'none.pth'}")
