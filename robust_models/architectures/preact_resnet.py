"""Pre-activation residual networks: PreActResNet, WideResNet, and the padding that DeepMind's variants use."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.architectures.resnet import Activation, conv1x1, conv3x3
from robust_models.errors import UserError

Conv = Callable[..., nn.Conv2d]  # (planes in, planes out, stride=)


class PreAct(nn.Module):
    """x + branch(h) with h = act(bn(x)); where shapes change, project(h) + branch(h). He et al. 2016, arXiv:1603.05027.

    raw_shortcut: project(x) instead, as in Wong et al. 2020, arXiv:2001.03994; the tensors are the same.
    """

    def __init__(
        self,
        branch: nn.Sequential,
        in_planes: int,
        out_planes: int,
        stride: int,
        act: Activation,
        *,
        project: Conv = conv1x1,
        raw_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.out_planes = out_planes
        self.preact = nn.Sequential(nn.BatchNorm2d(in_planes), act())
        self.branch = branch
        same = stride == 1 and in_planes == out_planes
        self.shortcut = None if same else project(in_planes, out_planes, stride=stride)
        self.raw_shortcut = raw_shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = self.preact(x)
        return self.branch(h) + (x if self.shortcut is None else self.shortcut(x if self.raw_shortcut else h))


Block = Callable[[int, int, int, Activation], PreAct]


def preact_block(
    in_planes: int,
    planes: int,
    stride: int,
    act: Activation,
    *,
    conv: Conv = conv3x3,
    project: Conv = conv1x1,
    raw_shortcut: bool = False,
) -> PreAct:
    """Two 3x3 convolutions."""
    branch = nn.Sequential(
        conv(in_planes, planes, stride=stride), nn.BatchNorm2d(planes), act(), conv3x3(planes, planes)
    )
    return PreAct(branch, in_planes, planes, stride, act, project=project, raw_shortcut=raw_shortcut)


def preact_bottleneck(
    in_planes: int, planes: int, stride: int, act: Activation, *, raw_shortcut: bool = False
) -> PreAct:
    """1x1, 3x3 with the stride, 1x1 to four times the planes."""
    branch = nn.Sequential(
        conv1x1(in_planes, planes),
        nn.BatchNorm2d(planes),
        act(),
        conv3x3(planes, planes, stride=stride),
        nn.BatchNorm2d(planes),
        act(),
        conv1x1(planes, 4 * planes),
    )
    return PreAct(branch, in_planes, 4 * planes, stride, act, raw_shortcut=raw_shortcut)


class PreActResNet(nn.Module):
    """[N,3,H,W] -> logits [N,classes]; stage i: depths[i] blocks of widths[i] planes, later stages halve the size.

    last_bn: act(bn(x)) before the pooling. kuangliu/pytorch-cifar's PreActResNets pool the sums as they are.
    """

    def __init__(
        self,
        stem_width: int,
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        block: Block = preact_block,
        last_bn: bool = True,
        num_classes: int,
        act: Activation,
    ) -> None:
        super().__init__()
        self.stem = conv3x3(3, stem_width)
        planes = stem_width
        blocks: list[PreAct] = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                blocks.append(block(planes, width, 2 if stage > 0 and i == 0 else 1, act))
                planes = blocks[-1].out_planes
        self.blocks = nn.Sequential(*blocks)
        last = [nn.BatchNorm2d(planes), act()] if last_bn else []
        self.pool = nn.Sequential(*last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))


def wide_resnet(
    depth: int,
    widths: Sequence[int],
    *,
    block: Block = preact_block,
    num_classes: int,
    act: Activation,
) -> PreActResNet:
    """Zagoruyko & Komodakis 2016, arXiv:1605.07146: three stages of (depth - 4) / 6 blocks, 16k, 32k and 64k wide."""
    if depth < 10 or (depth - 4) % 6 != 0:
        raise UserError(f"wide_resnet depth: {depth} is not 6n + 4 with n >= 1 (10, 16, 22, 28, 34, ...)")
    depths = ((depth - 4) // 6,) * 3
    return PreActResNet(16, widths, depths, block=block, num_classes=num_classes, act=act)


class SameConv3x3(nn.Conv2d):
    """3x3 with TensorFlow's "SAME" padding of even sizes: at stride 2 one row and column, at the far edge only.

    A convolution with padding 1 looks one pixel further to the left and up. The tensors are the same.
    """

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__(in_planes, planes, 3, stride=stride, padding=0 if stride == 2 else 1, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return super().forward(F.pad(input, (0, 1, 0, 1)) if self.stride == (2, 2) else input)
