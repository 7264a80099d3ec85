import pytest
import torch
import torch.nn.functional as F

from robust_models import UserError
from robust_models.features.dinov2 import DINOv2Features

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
    found = DINOv2Features(device=torch.device("cpu"), model=f"{SMALL}.lvd142m", weights=path)(x_u8)

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
        DINOv2Features(device=torch.device("cpu"), model=f"{SMALL}.lvd142m", weights=path)
