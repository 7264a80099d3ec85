"""Residual networks for 32x32 images: 3x3 stem, no pooling before the last stage."""

from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def conv3x3(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)


class _Residual(nn.Module):
    """act(branch(x) + shortcut(x)); the shortcut is a projection where shapes change."""

    def __init__(self, branch: nn.Sequential, in_planes: int, out_planes: int, stride: int, act: Activation) -> None:
        super().__init__()
        self.branch = branch
        same = stride == 1 and in_planes == out_planes
        self.shortcut: nn.Module = (
            nn.Identity() if same else nn.Sequential(conv1x1(in_planes, out_planes, stride), nn.BatchNorm2d(out_planes))
        )
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


class BasicBlock(_Residual):
    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int, act: Activation) -> None:
        branch = nn.Sequential(
            conv3x3(in_planes, planes, stride),
            nn.BatchNorm2d(planes),
            act(),
            conv3x3(planes, planes),
            nn.BatchNorm2d(planes),
        )
        super().__init__(branch, in_planes, planes, stride, act)


class Bottleneck(_Residual):
    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int, act: Activation) -> None:
        out_planes = planes * self.expansion
        branch = nn.Sequential(
            conv1x1(in_planes, planes),
            nn.BatchNorm2d(planes),
            act(),
            conv3x3(planes, planes, stride),
            nn.BatchNorm2d(planes),
            act(),
            conv1x1(planes, out_planes),
            nn.BatchNorm2d(out_planes),
        )
        super().__init__(branch, in_planes, out_planes, stride, act)


class ResNet(nn.Module):
    """He et al. 2016 with the CIFAR stem that MadryLab's robust CIFAR models use. [N,3,H,W] -> logits [N,classes]."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], *, num_classes: int, act: Activation
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(3, 64), nn.BatchNorm2d(64), act())
        planes = 64
        stages: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            for i in range(depth):
                stages.append(block(planes, width, stride=2 if stage > 0 and i == 0 else 1, act=act))
                planes = width * block.expansion
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))
