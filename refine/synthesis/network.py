"""The classifier as tasks see it."""

import torch
from torch import Tensor

from refine.resize import AtClassifierSize


class Network(AtClassifierSize):
    """x [N,3,H,W] of any size in [0,1] -> logits [N,classes]; and its features, where it is, and its classes."""

    def here(self, x: Tensor) -> Tensor:
        """x on the network's device."""
        return x.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.model.class_names

    @property
    def image_size(self) -> int:
        return self.model.image_size
