"""The classifier as tasks see it."""

import torch
from torch import Tensor

from refine.resize import AtClassifierSize


class Network(AtClassifierSize):
    """x [N,3,H,W] of any size in [0,1] -> logits [N,classes]; and the features of the last layer but one."""

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees in x of any size, [N,D] float32. UserError where there is no such layer."""
        seen: list[Tensor] = []
        handle = self.model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self(x)
        finally:
            handle.remove()
        return seen[0].flatten(1).float()

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
