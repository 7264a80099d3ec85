"""A classifier behind a differentiable resize, for images of another size than its own."""

import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.classifier import RobustClassifier


class AtClassifierSize(nn.Module):
    """x [N,3,H,W] of any size in [0,1] -> logits [N,classes]; what has the classifier's size is not touched.

    Bilinear with antialiasing, half-pixel centres: a refined image is then one that looks better to the classifier at
    its own size, and the gradient spreads over every pixel of the large image.
    """

    def __init__(self, model: RobustClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.fitted(x))

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees in x of any size, [N,D] float32. UserError where there is no such layer."""
        return self.model.features(self.fitted(x))

    def fitted(self, x: Tensor) -> Tensor:
        """x at the classifier's size."""
        size = (self.model.image_size, self.model.image_size)
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
