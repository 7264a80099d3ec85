"""Residual networks for 32x32 images: 3x3 stem, no pooling before the last stage."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


# Of (planes in, planes out); stride= and groups= where they are not 1. Padded: stride 1 keeps the size.
conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
conv1x1 = partial(nn.Conv2d, kernel_size=1, bias=False)


def projection(in_planes: int, planes: int, stride: int) -> nn.Sequential:
    """A shortcut with weights (option B of He et al. 2016, arXiv:1512.03385)."""
    return nn.Sequential(conv1x1(in_planes, planes, stride=stride), nn.BatchNorm2d(planes))


class ZeroPadding(nn.Module):
    """A shortcut without weights (option A): every second pixel, and channels of zeros, half of them on each side."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, planes - in_planes

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C,H,W] -> [N,C+added,H/stride,W/stride]."""
        before = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))


class Residual(nn.Module):
    """act(branch(x) + shortcut(x)); the shortcut has weights or zeros where shapes change."""

    def __init__(
        self,
        branch: nn.Sequential,
        in_planes: int,
        out_planes: int,
        stride: int,
        act: Activation,
        *,
        shortcut: Callable[[int, int, int], nn.Module] = projection,
    ) -> None:
        super().__init__()
        self.out_planes = out_planes
        self.branch = branch
        same = stride == 1 and in_planes == out_planes
        self.shortcut: nn.Module = nn.Identity() if same else shortcut(in_planes, out_planes, stride)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


Block = Callable[[int, int, int, Activation], Residual]


def basic_block(
    in_planes: int,
    planes: int,
    stride: int,
    act: Activation,
    *,
    shortcut: Callable[[int, int, int], nn.Module] = projection,
) -> Residual:
    """Two 3x3 convolutions."""
    branch = nn.Sequential(
        conv3x3(in_planes, planes, stride=stride),
        nn.BatchNorm2d(planes),
        act(),
        conv3x3(planes, planes),
        nn.BatchNorm2d(planes),
    )
    return Residual(branch, in_planes, planes, stride, act, shortcut=shortcut)


def bottleneck(
    in_planes: int, planes: int, stride: int, act: Activation, *, groups: int = 1, group_width: int = 64
) -> Residual:
    """1x1, 3x3 with the stride, 1x1 to four times the planes.

    groups, group_width (of 64 planes): ResNeXt's parallel paths, Xie et al. 2017, arXiv:1611.05431, figure 3c.
    """
    inner, out_planes = groups * (planes * group_width // 64), 4 * planes
    branch = nn.Sequential(
        conv1x1(in_planes, inner),
        nn.BatchNorm2d(inner),
        act(),
        conv3x3(inner, inner, stride=stride, groups=groups),
        nn.BatchNorm2d(inner),
        act(),
        conv1x1(inner, out_planes),
        nn.BatchNorm2d(out_planes),
    )
    return Residual(branch, in_planes, out_planes, stride, act)


class ResNet(nn.Module):
    """He et al. 2016 with the CIFAR stem that MadryLab's robust CIFAR models use. [N,3,H,W] -> logits [N,classes].

    Stage i has depths[i] blocks of 2^i * width planes; each stage but the first halves the size.
    """

    def __init__(
        self, block: Block, depths: tuple[int, ...], *, width: int = 64, num_classes: int, act: Activation
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), act())
        planes = width
        blocks: list[Residual] = []
        for stage, depth in enumerate(depths):
            for i in range(depth):
                blocks.append(block(planes, width * 2**stage, 2 if stage > 0 and i == 0 else 1, act))
                planes = blocks[-1].out_planes
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))
