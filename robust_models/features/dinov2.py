"""Class-token features of DINOv2 ViT-L/14, which follow people's judgement better than Inception's do.

Stein et al. 2023, arXiv:2306.04675. The network comes from timm, its weights from torch's or Hugging Face's cache.
"""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from robust_models.checkpoints.flags import Source
from robust_models.errors import UserError
from robust_models.features.protocols import bicubic
from robust_models.runtime.device import exact_fp32
from robust_models.runtime.files import sha256_of

MODEL = "vit_large_patch14_dinov2.lvd142m"
HUB_NAME = "dinov2_vitl14_pretrain.pth"  # as torch.hub.load("facebookresearch/dinov2", "dinov2_vitl14") leaves it
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{HUB_NAME}"
SIDE = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DINOv2Features:
    """FeatureExtractor "dinov2", 1024-d: antialiased bicubic to 224 px in float, ImageNet's mean and deviation."""

    name = "dinov2"
    protocol = "clean-224"
    image_size: int | None = None
    is_fid = False
    spatial_dim: int | None = None
    num_classes: int | None = None

    def __init__(self, *, device: torch.device, model: str = MODEL, weights: Path | None = None) -> None:
        """UserError where timm or the weights are missing."""
        try:
            import timm
        except ImportError as error:
            raise UserError(f'features: dinov2 needs timm ({error}); pip install "bigroc[zoo]"') from error
        path = weights or _find(model)
        self.source = Source(path.name, sha256_of(path))
        network = _load(timm.create_model, model, path)
        self._network = network.eval().requires_grad_(False).to(device)
        self.dim = int(network.num_features)  # type: ignore[arg-type]
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in IMAGENET)
        self._mean, self._std = mean, std
        self._device = device

    def __call__(self, x_u8: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            x = bicubic(x_u8.to(self._device), SIDE) / 255
            return self._network((x - self._mean) / self._std)

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features, None): the sFID is defined in Inception alone."""
        return self(x_u8), None

    def logits(self, features: Tensor) -> Tensor | None:
        """None: it is no classifier."""
        return None


def _load(create: Callable[..., Any], model: str, path: Path) -> Any:
    """As weights that timm itself would have fetched: then it fits Meta's file, made for 518 px, to the network."""
    cfg = {"file": str(path)}
    try:
        return create(model, pretrained=True, pretrained_cfg_overlay=cfg, img_size=SIDE, num_classes=0)
    except (RuntimeError, KeyError, UnpicklingError, EOFError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"features: {path} holds no weights of DINOv2 ({first}); download {URL}") from error


def _find(model: str) -> Path:
    """The weights in torch's hub cache or Hugging Face's; UserError where they are in neither."""
    hub = Path(torch.hub.get_dir()) / "checkpoints" / HUB_NAME
    if hub.is_file():
        return hub
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        found = None
    else:
        found = try_to_load_from_cache(f"timm/{model}", "model.safetensors")
    if isinstance(found, str):
        return Path(found)
    raise UserError(f"features: the weights of DINOv2 are not on this machine; download {URL} to {hub}")
