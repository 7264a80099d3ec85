"""VGG with batch norms for 32x32 images."""

from torch import Tensor, nn

from robust_models.architectures.resnet import Activation

# Convolutions of 64, 128, 256, 512 and 512 channels; Simonyan & Zisserman 2015, arXiv:1409.1556, table 1 A, B, D, E.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """[N,3,H,W] of 32 pixels or more -> logits [N,classes]; one linear layer, as usual for CIFAR."""

    def __init__(self, depth: int, *, num_classes: int, act: Activation) -> None:
        super().__init__()
        planes, blocks = 3, list[nn.Module]()
        for width, convolutions in zip((64, 128, 256, 512, 512), DEPTHS[depth], strict=True):
            for _ in range(convolutions):
                blocks += [nn.Conv2d(planes, width, 3, padding=1), nn.BatchNorm2d(width), act()]
                planes = width
            blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # 1x1 already, at 32 pixels
        self.head = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(x)))
