"""Pre-activation residual networks: PreActResNet and the WideResNet-d-k family built from the same block."""

from torch import Tensor, nn

from robust_models.architectures.resnet import Activation, conv1x1, conv3x3
from robust_models.errors import UserError


class PreActBlock(nn.Module):
    """x + branch(act(bn(x))); a projecting shortcut also starts from act(bn(x)). He et al. 2016, arXiv:1603.05027."""

    def __init__(self, in_planes: int, planes: int, stride: int, act: Activation) -> None:
        super().__init__()
        self.preact = nn.Sequential(nn.BatchNorm2d(in_planes), act())
        self.branch = nn.Sequential(
            conv3x3(in_planes, planes, stride), nn.BatchNorm2d(planes), act(), conv3x3(planes, planes)
        )
        same = stride == 1 and in_planes == planes
        self.shortcut = None if same else conv1x1(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.preact(x)
        return self.branch(h) + (x if self.shortcut is None else self.shortcut(h))


class PreActResNet(nn.Module):
    """[N,3,H,W] -> logits [N,classes]; stage i: depths[i] blocks of widths[i] channels, later stages halve the size."""

    def __init__(
        self, stem_width: int, widths: tuple[int, ...], depths: tuple[int, ...], *, num_classes: int, act: Activation
    ) -> None:
        super().__init__()
        self.stem = conv3x3(3, stem_width)
        planes = stem_width
        blocks: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                blocks.append(PreActBlock(planes, width, stride=2 if stage > 0 and i == 0 else 1, act=act))
                planes = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.BatchNorm2d(planes), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))


def wide_resnet(depth: int, widen: int, *, num_classes: int, act: Activation) -> PreActResNet:
    """WideResNet-depth-widen, Zagoruyko & Komodakis 2016, arXiv:1605.07146: three stages of (depth - 4) / 6 blocks."""
    if depth < 10 or (depth - 4) % 6 != 0:
        raise UserError(f"wide_resnet depth: {depth} is not 6n + 4 with n >= 1 (10, 16, 22, 28, 34, ...)")
    blocks_per_stage = (depth - 4) // 6
    widths = (16 * widen, 32 * widen, 64 * widen)
    return PreActResNet(16, widths, (blocks_per_stage,) * 3, num_classes=num_classes, act=act)
