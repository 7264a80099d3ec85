"""CLIP's ResNets (Radford et al. 2021, arXiv:2103.00020): three convolutions at the start, average pooling where others
stride, attention in place of the last mean."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.architectures.clip import HEAD_WIDTH, with_classes
from robust_models.architectures.resnet import Activation

EXPANSION = 4  # channels that a block gives, in those that it works in
STRIDE = 32  # pixels of the image to one of the last map


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each with its batch norm; where it halves the map, both ways do it by a mean."""

    def __init__(self, channels: int, width: int, stride: int, act: Activation) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.act = act()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = nn.Sequential()
        if stride > 1 or channels != out:
            self.downsample.add_module("0", nn.Conv2d(channels, out, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(out))
        self.project = bool(len(self.downsample))

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,H,W] -> [N,4*width,H/stride,W/stride]."""
        shortcut = self.downsample(self.pool(x)) if self.project else x
        x = self.act(self.bn1(self.conv1(x)))
        x = self.pool(self.act(self.bn2(self.conv2(x))))
        return self.act(self.bn3(self.conv3(x)) + shortcut)


class AttentionPool(nn.Module):
    """The mean of all places attends to them and to itself."""

    def __init__(self, places: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_WIDTH)
        self.positional_embedding = nn.Parameter(channels**-0.5 * torch.randn(places + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, embedding)

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,H,W] of H*W places -> [N,embedding]."""
        places = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(1, keepdim=True), places], dim=1) + self.positional_embedding
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    """Images [N,3,H,W] of image_size pixels -> embeddings [N,embedding]; names of tensors as in OpenAI's files."""

    def __init__(self, depths: tuple[int, ...], image_size: int, width: int, embedding: int, act: Activation) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act, self.pool = act(), nn.AvgPool2d(2)
        channels, stages = width, []
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential()
            for block in range(depth):
                stride = 2 if stage and block == 0 else 1
                blocks.append(Bottleneck(channels, width << stage, stride, act))
                channels = EXPANSION * (width << stage)
            stages.append(blocks)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool((image_size // STRIDE) ** 2, channels, embedding)

    def forward(self, x: Tensor) -> Tensor:
        """x [N,3,H,W] -> embeddings [N,embedding], not normalised."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.act(norm(conv(x)))
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(self.pool(x))))))


def clip_resnet(*numbers: str | None, num_classes: int, act: Activation) -> nn.Module:
    """The classifier of a name's groups: blocks of four stages, image size, width, embedding, "_linear" or None."""
    *depths, image_size, width, embedding = (int(number or 0) for number in numbers[:7])
    visual = ModifiedResNet(tuple(depths), image_size, width, embedding, act)
    return with_classes(visual, embedding, num_classes, linear=bool(numbers[7]))
