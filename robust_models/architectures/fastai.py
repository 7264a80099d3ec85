"""fastai's vision learners: a body of torchvision without its pooling and head, and a head of fastai's own."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robust_models.errors import UserError


class ConcatPool(nn.Module):
    """Maps [N,C,H,W] -> maxima and means over all positions, [N,2C,1,1]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C,H,W] -> [N,2C,1,1], the maxima first."""
        return torch.cat([x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)], dim=1)


def learner(resnet: nn.Module, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """torchvision's ResNet as fastai takes it apart: Sequential(body, head), names 0.* and 1.*.

    options: hidden, the widths between pooling and logits; bias, whether the linear layers have one. UserError where
    the network does not end in pooling and a linear layer.
    """
    *body, pooling, classifier = resnet.children()
    if not (isinstance(pooling, nn.AdaptiveAvgPool2d) and isinstance(classifier, nn.Linear)):
        raise UserError("options: fastai_head is for torchvision's ResNets")
    widths = [2 * classifier.in_features, *options["hidden"], num_classes]
    return nn.Sequential(nn.Sequential(*body), _head(widths, bias=options["bias"]))


def _head(widths: Sequence[int], *, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = [ConcatPool(), nn.Flatten()]
    for i, (width, following) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers += [nn.BatchNorm1d(width), nn.Dropout(0.5 if last else 0.25), nn.Linear(width, following, bias=bias)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
