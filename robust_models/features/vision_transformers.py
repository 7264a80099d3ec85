"""Features of large vision transformers that no classifier made: DINOv2 and CLIP.

Networks come from timm (CLIP's also from transformers), weights from a given file, torch's or Hugging Face's cache.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from robust_models.checkpoints.flags import Source
from robust_models.classifier import NORMALIZERS, Normalizer
from robust_models.errors import UserError
from robust_models.features.protocols import bicubic
from robust_models.runtime.device import exact_fp32
from robust_models.runtime.files import sha256_of


@dataclass(frozen=True)
class Spec:
    """A feature space: timm's network, how it sees images, and where its weights may lie."""

    words: str
    model: str
    side: int  # pixels
    normalizer: Normalizer
    hub_name: str  # as torch.hub leaves the file
    cached: tuple[tuple[str, str], ...]  # (repository, file) in Hugging Face's cache
    url: str


SPECS = {
    # Stein et al. 2023, arXiv:2306.04675: follows people's judgement better than Inception does. The class token.
    "dinov2": Spec(
        "DINOv2",
        "vit_large_patch14_dinov2.lvd142m",
        224,
        NORMALIZERS["imagenet"],
        "dinov2_vitl14_pretrain.pth",
        (("timm/vit_large_patch14_dinov2.lvd142m", "model.safetensors"),),
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    ),
    # What the CMMD is defined in (Jayasumana et al. 2024, arXiv:2401.09603): the projected embedding.
    "clip": Spec(
        "CLIP ViT-L/14 at 336 px",
        "vit_large_patch14_clip_quickgelu_336.openai",
        336,
        NORMALIZERS["clip"],
        "clip-vit-large-patch14-336.bin",
        (
            ("openai/clip-vit-large-patch14-336", "model.safetensors"),
            ("openai/clip-vit-large-patch14-336", "pytorch_model.bin"),
            ("timm/vit_large_patch14_clip_336.openai", "model.safetensors"),
            ("timm/vit_large_patch14_clip_336.openai", "open_clip_model.safetensors"),
        ),
        "https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/main/pytorch_model.bin",
    ),
}


class TransformerFeatures:
    """FeatureExtractor "dinov2" (1024-d) or "clip" (768-d): antialiased bicubic in float, then its normaliser."""

    image_size: int | None = None
    is_fid = False
    spatial_dim: int | None = None
    num_classes: int | None = None

    def __init__(
        self, name: str, *, device: torch.device, model: str | None = None, weights: Path | None = None
    ) -> None:
        """UserError where timm or the weights are missing. weights: None, where they usually are."""
        try:
            import timm
        except ImportError as error:
            raise UserError(f'features: {name} needs timm ({error}); pip install "bigroc[zoo]"') from error
        spec = SPECS[name]
        if weights is not None and not weights.is_file():
            raise UserError(f"features: no file {weights}; download {spec.url}")
        path = weights or _find(spec)
        self.source = Source(path.name, sha256_of(path))
        self.name, self._side, self.protocol = name, spec.side, f"clean-{spec.side}"
        self._network = (
            _load(timm.create_model, model or spec.model, spec, path).eval().requires_grad_(False).to(device)
        )
        values = (spec.normalizer.mean, spec.normalizer.std)
        self._mean, self._std = (torch.tensor(one, device=device).view(3, 1, 1) for one in values)
        self._device = device
        self.dim = self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[1]

    def __call__(self, x_u8: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            x = bicubic(x_u8.to(self._device), self._side) / 255
            found = self._network((x - self._mean) / self._std)
            return found if isinstance(found, Tensor) else found.image_embeds

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features, None): the sFID is defined in Inception alone."""
        return self(x_u8), None

    def logits(self, features: Tensor) -> Tensor | None:
        """None: it is no classifier."""
        return None


def _load(create: Callable[..., Any], model: str, spec: Spec, path: Path) -> nn.Module:
    """By timm, as weights that it would have fetched: it fits Meta's, OpenAI's and OpenCLIP's files to its network."""
    from timm.models import load_state_dict

    is_clip = spec is SPECS["clip"]
    size: dict[str, Any] = {} if is_clip else {"img_size": spec.side, "num_classes": 0}
    try:
        if is_clip:
            state = load_state_dict(str(path), use_ema=False, weights_only=True)
            if "visual_projection.weight" in state:
                return _of_transformers(state)
            size = {"num_classes": _projected(state)}
        overlay = {"file": str(path), "num_classes": size["num_classes"]}  # another number would leave the head out
        return create(model, pretrained=True, pretrained_cfg_overlay=overlay, **size)
    except (RuntimeError, KeyError, UnpicklingError, EOFError, AttributeError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"features: {path} holds no weights of {spec.words} ({first}); download {spec.url}") from error


def _projected(state: Mapping[str, Tensor]) -> int:
    """The dimension of the embedding that images and texts share."""
    if "head.weight" in state:
        return len(state["head.weight"])
    return state["visual.proj"].shape[1]


def _of_transformers(state: Mapping[str, Tensor]) -> nn.Module:
    """The image encoder of a file that transformers wrote; its sizes are those of its tensors."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    inner = "vision_model."
    patch = state[f"{inner}embeddings.patch_embedding.weight"]
    positions = state[f"{inner}embeddings.position_embedding.weight"]
    layers = {key.split(".")[3] for key in state if key.startswith(f"{inner}encoder.layers.")}
    config = CLIPVisionConfig(
        hidden_size=len(patch),
        intermediate_size=len(state[f"{inner}encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len(layers),
        num_attention_heads=len(patch) // 64,
        patch_size=patch.shape[-1],
        image_size=round((len(positions) - 1) ** 0.5) * patch.shape[-1],
        projection_dim=len(state["visual_projection.weight"]),
        hidden_act="quick_gelu",
    )
    network = CLIPVisionModelWithProjection(config)
    wanted = network.state_dict()
    network.load_state_dict({key: state[key] for key in wanted})
    return network


def _find(spec: Spec) -> Path:
    """The weights in torch's hub cache or Hugging Face's; UserError where they are in neither."""
    hub = Path(torch.hub.get_dir()) / "checkpoints" / spec.hub_name
    if hub.is_file():
        return hub
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        pass
    else:
        for repository, name in spec.cached:
            found = try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                return Path(found)
    raise UserError(f"features: the weights of {spec.words} are not on this machine; download {spec.url} to {hub}")
