"""The convolutional networks of SN-DCGAN (Miyato et al. 2018, arXiv:1802.05957, table 3); published width: 64.

DOT and Discriminator Gradient flow refine this generator. 3.8 M and 5.9 M parameters; half as wide, 1.2 M and 1.5 M.
"""

from itertools import pairwise

from torch import Tensor, nn

from benchmarks.generators.layers import LATENT, BatchNorm, Discriminator, init_normal, init_xavier

SLOPE = 0.1  # of the leaky ReLUs


class Generator(nn.Module):
    """z [N,128] (and y [N] where there are classes) -> x [N,3,32,32] in [-1,1]."""

    pixels = "symmetric"

    def __init__(self, width: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.z_shape = (LATENT,)
        self.num_classes = num_classes
        planes = [8 * width, 4 * width, 2 * width, width]
        self.linear = nn.Linear(LATENT, 16 * planes[0], bias=False)
        self.first = BatchNorm(16 * planes[0], num_classes)  # each of the 4x4 places has statistics of its own
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(planes))
        self.norms = nn.ModuleList(BatchNorm(count, num_classes) for count in planes[1:])
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        init_normal(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.first(self.linear(z)[..., None, None], y).relu().flatten(1).unflatten(1, (-1, 4, 4))
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = norm(up(x), y).relu()
        return self.last(x).float().tanh()


def discriminator(width: int, *, num_classes: int | None = None, turns: bool = False) -> Discriminator:
    """Seven convolutions to 8 * width features of each of 4x4 places."""
    planes = [3, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(planes)):
        halving = i % 2 == 1
        layers += [nn.Conv2d(before, after, 4 if halving else 3, 2 if halving else 1, 1), nn.LeakyReLU(SLOPE)]
    network = Discriminator(nn.Sequential(*layers, nn.Flatten()), 16 * planes[-1], num_classes=num_classes, turns=turns)
    init_xavier(network, "trunk")  # of smaller ones, without spectral norm, logits would begin at nothing
    return network
