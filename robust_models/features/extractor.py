"""What a feature space is, and how its name opens it."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from eval.provenance import Source
from robust_models.errors import UserError


class FeatureExtractor(Protocol):
    """features = extractor(x_u8): uint8 [n,3,H,W] on any device -> float32 [n,dim] on the extractor's device."""

    name: str  # as --features has it
    dim: int
    protocol: str  # how pixels reach the network
    image_size: int | None  # the one size it takes, pixels; None: it resizes
    source: Source  # the network's file
    is_fid: bool  # its Frechet distance is the FID

    def __call__(self, x_u8: Tensor) -> Tensor: ...


def open_features(name: str, *, weights: Path | None = None, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The feature space called `name`: "classifier:NAME_OR_FILE", "inception" (2048-d, pool3) or "inception-768".

    weights is a local file for the Inception network, looked for in torch's hub cache when None. UserError for another
    name, a missing package, a missing or foreign weights file.
    """
    device = torch.device(device)
    kind, _, checkpoint = name.partition(":")
    if kind == "classifier" and checkpoint:
        if weights is not None:
            raise UserError(f"weights: belongs to the Inception network; --features {name} names its own checkpoint")
        from eval.features.classifier import ClassifierFeatures

        return ClassifierFeatures(checkpoint, device=device)

    from eval.features.inception import DEPTHS, InceptionFeatures

    if name in DEPTHS:
        return InceptionFeatures(name, weights, device=device)
    raise UserError(f"features: {name!r} is none of classifier:NAME_OR_FILE, {', '.join(DEPTHS)}")
