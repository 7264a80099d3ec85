"""DenseNet-BC for 32x32 images: 3x3 stem, no pooling before the first transition."""

import torch
from torch import Tensor, nn

from robust_models.architectures.resnet import Activation, conv1x1, conv3x3

# Layers per stage; Huang et al. 2017, arXiv:1608.06993, table 1 (161 is the authors' released one, growth 48).
DEPTHS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


class DenseLayer(nn.Module):
    """[branch(x), x]: new channels come first (torchvision appends them; weights do not carry over)."""

    def __init__(self, in_planes: int, growth: int, act: Activation) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(in_planes),
            act(),
            conv1x1(in_planes, 4 * growth),
            nn.BatchNorm2d(4 * growth),
            act(),
            conv3x3(4 * growth, growth),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch(x), x], dim=1)


class DenseNet(nn.Module):
    """[N,3,H,W] -> logits [N,classes]; each layer adds `growth` channels, each transition halves channels and size."""

    def __init__(self, depth: int, growth: int, *, num_classes: int, act: Activation) -> None:
        super().__init__()
        planes = 2 * growth
        self.stem = conv3x3(3, planes)
        blocks: list[nn.Module] = []
        for stage, layers in enumerate(DEPTHS[depth]):
            if stage > 0:
                blocks.append(
                    nn.Sequential(nn.BatchNorm2d(planes), act(), conv1x1(planes, planes // 2), nn.AvgPool2d(2))
                )
                planes //= 2
            for _ in range(layers):
                blocks.append(DenseLayer(planes, growth, act))
                planes += growth
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.BatchNorm2d(planes), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))
