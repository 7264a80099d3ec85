"""Inception v3 for 32x32 images: the ImageNet network without the strides and poolings of its stem.

Szegedy et al. 2016, arXiv:1512.00567, in the variant that MadryLab robustness ships: maps of 32, 30, 14 and 6 pixels,
and a 3x3 convolution behind the pooling of the first three mixed blocks, where others have 1x1.
"""

import torch
from torch import Tensor, nn

from robust_models.architectures.resnet import Activation

Step = tuple[int, int | tuple[int, int]]  # planes, kernel


class Parallel(nn.ModuleList):
    """The outputs of all branches, side by side in the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def unit(
    planes_in: int, planes: int, kernel: int | tuple[int, int], act: Activation, *, stride: int = 1, pad: bool = True
) -> nn.Sequential:
    """Convolution, batch norm, activation. Padded convolutions of stride 1 keep the size."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if pad else 0
    conv = nn.Conv2d(planes_in, planes, kernel, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes), act())


def chain(planes: int, *steps: Step, act: Activation, halve: bool = False) -> nn.Sequential:
    """One padded unit per step; halve: the last has stride 2 and no padding."""
    units: list[nn.Module] = []
    for i, (width, kernel) in enumerate(steps):
        last = halve and i == len(steps) - 1
        units.append(unit(planes, width, kernel, act, stride=2 if last else 1, pad=not last))
        planes = width
    return nn.Sequential(*units)


def pooled(planes: int, step: Step, act: Activation) -> nn.Sequential:
    """The mean of 3x3 pixels (zeros beyond the edge count), then one unit."""
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), *chain(planes, step, act=act))


def mixed_5(planes: int, pool_planes: int, act: Activation) -> Parallel:
    """At full size; figure 5 of the paper."""
    branches = ([(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)])
    return Parallel([*(chain(planes, *steps, act=act) for steps in branches), pooled(planes, (pool_planes, 3), act)])


def mixed_6(planes: int, inner: int, act: Activation) -> Parallel:
    """7x7 convolutions as columns and rows; figure 6."""
    column, row, last = (inner, (7, 1)), (inner, (1, 7)), (192, (1, 7))
    branches = ([(192, 1)], [(inner, 1), column, last], [(inner, 1), column, row, column, last])
    return Parallel([*(chain(planes, *steps, act=act) for steps in branches), pooled(planes, (192, 1), act)])


def mixed_7(planes: int, act: Activation) -> Parallel:
    """Rows and columns beside each other; figure 7."""

    def spread() -> Parallel:
        return Parallel([chain(384, (384, (1, 3)), act=act), chain(384, (384, (3, 1)), act=act)])

    return Parallel(
        [
            chain(planes, (320, 1), act=act),
            nn.Sequential(*chain(planes, (384, 1), act=act), spread()),
            nn.Sequential(*chain(planes, (448, 1), (384, 3), act=act), spread()),
            pooled(planes, (192, 1), act),
        ]
    )


def halving_6(planes: int, act: Activation) -> Parallel:
    """To half the size, behind the blocks at full size."""
    branches = ([(384, 3)], [(64, 1), (96, 3), (96, 3)])
    return Parallel([*(chain(planes, *steps, act=act, halve=True) for steps in branches), nn.MaxPool2d(3, stride=2)])


def halving_7(planes: int, act: Activation) -> Parallel:
    """To half the size, behind the blocks of rows and columns."""
    branches = ([(192, 1), (320, 3)], [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)])
    return Parallel([*(chain(planes, *steps, act=act, halve=True) for steps in branches), nn.AvgPool2d(3, stride=2)])


class InceptionV3(nn.Module):
    """[N,3,H,W] -> logits [N,classes]."""

    def __init__(self, *, num_classes: int, act: Activation) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *chain(3, (32, 3), (32, 3), (64, 3), (80, 1), act=act),
            unit(80, 192, 3, act, pad=False),
        )
        self.blocks = nn.Sequential(
            mixed_5(192, 32, act),
            mixed_5(256, 64, act),
            mixed_5(288, 64, act),
            halving_6(288, act),
            mixed_6(768, 128, act),
            mixed_6(768, 160, act),
            mixed_6(768, 160, act),
            mixed_6(768, 192, act),
            halving_7(768, act),
            mixed_7(1280, act),
            mixed_7(2048, act),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))
