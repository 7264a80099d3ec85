"""The ResNets of SNGAN on 32x32 images (Miyato et al. 2018, arXiv:1802.05957, table 4), which BigGAN widens.

Details and counts as in the library mimicry (github.com/kwotsin/mimicry): a generator of width 256 has 4.28 M
parameters, a discriminator of width 128 1.05 M.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from benchmarks.generators.layers import LATENT, BatchNorm, Discriminator, ToFeatures, init_xavier


class UpBlock(nn.Module):
    """[N,C,S,S] -> [N,width,2S,2S]."""

    def __init__(self, width: int, num_classes: int | None, upsampling: str) -> None:
        super().__init__()
        smooth = {"align_corners": False} if upsampling == "bilinear" else {}
        self.up = nn.Upsample(scale_factor=2, mode=upsampling, **smooth)
        self.norm1, self.norm2 = BatchNorm(width, num_classes), BatchNorm(width, num_classes)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.conv1(self.up(self.norm1(x, y).relu()))
        return self.conv2(self.norm2(h, y).relu()) + self.shortcut(self.up(x))


class Generator(nn.Module):
    """z [N,128] (and y [N] where there are classes) -> x [N,3,32,32] in [-1,1]."""

    pixels = "symmetric"

    def __init__(self, width: int, num_classes: int | None = None, *, upsampling: str = "bilinear") -> None:
        super().__init__()
        self.z_shape = (LATENT,)
        self.num_classes = num_classes
        self.linear = nn.Linear(LATENT, 16 * width)
        self.blocks = nn.ModuleList(UpBlock(width, num_classes, upsampling) for _ in range(3))
        self.norm = BatchNorm(width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        init_xavier(self, ".conv")

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, y)
        return self.last(self.norm(x).relu()).float().tanh()


class DownBlock(nn.Module):
    """[N,before,S,S] -> [N,after,S/2,S/2], or of the same size. The first block of a network sees pixels: no ReLU is
    before its convolutions, and its shortcut shrinks before it convolves."""

    def __init__(self, before: int, after: int, *, halving: bool, first: bool = False) -> None:
        super().__init__()
        self.halving, self.first = halving, first
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if halving else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x if self.first else x.relu()).relu())
        if not self.halving:
            return h + x
        shortcut = self.shortcut(avg_pool2d(x, 2)) if self.first else avg_pool2d(self.shortcut(x), 2)
        return avg_pool2d(h, 2) + shortcut


def discriminator(
    width: int, *, num_classes: int | None = None, turns: bool = False, pool: str = "sum"
) -> Discriminator:
    """Four blocks to `width` features, summed (or averaged: pool "mean") over 8x8 places."""
    trunk = nn.Sequential(
        DownBlock(3, width, halving=True, first=True),
        DownBlock(width, width, halving=True),
        DownBlock(width, width, halving=False),
        DownBlock(width, width, halving=False),
        nn.ReLU(),
        ToFeatures(pool),
    )
    network = Discriminator(trunk, width, num_classes=num_classes, turns=turns)
    init_xavier(network, ".conv")
    return network
