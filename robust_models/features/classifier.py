"""The features of a classifier: what its last linear layer sees."""

import torch
from torch import Tensor

from robust_models.checkpoints.provenance import load_classifier
from robust_models.images import to_float
from robust_models.runtime.device import exact_fp32, place


class ClassifierFeatures:
    """FeatureExtractor of the classifier called or stored at `checkpoint`; fp32 whatever the hardware."""

    protocol = "pixels/255"  # no resizing: the images have the classifier's size
    is_fid = False
    spatial_dim: int | None = None

    def __init__(self, checkpoint: str, *, device: torch.device) -> None:
        model, self.source = load_classifier(checkpoint)
        self.name = f"classifier:{checkpoint}"
        self.dim = model.head.in_features
        self.num_classes: int | None = len(model.class_names)
        self.image_size: int | None = model.image_size
        self._model = place(model, device, "fp32")
        self._device = device

    def __call__(self, x_u8: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            return self._model.features(to_float(x_u8.to(self._device)))

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        return self(x_u8), None

    def logits(self, features: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            return self._model.head(features)
