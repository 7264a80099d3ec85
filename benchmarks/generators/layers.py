"""Layers that the GANs share, spectral norm, and where their weights begin."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

LATENT = 128
WEIGHTED = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


class BatchNorm(nn.Module):
    """Batch norm; with num_classes, its scale and shift are those of each image's class (de Vries et al. 2017)."""

    def __init__(self, planes: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(planes, affine=num_classes is None)
        self.embed = None
        if num_classes is not None:
            self.embed = nn.Embedding(num_classes, 2 * planes)
            with torch.no_grad():
                self.embed.weight[:, :planes].normal_(1.0, 0.02)
                self.embed.weight[:, planes:].zero_()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x [N,C,H,W], y [N] where there are classes."""
        x = self.norm(x)
        if self.embed is None:
            return x
        assert y is not None
        scale, shift = self.embed(y).to(x.dtype)[..., None, None].chunk(2, dim=1)
        return scale * x + shift


class Discriminator(nn.Module):
    """x [N,3,32,32] in [-1,1] (and y [N]) -> logits [N] of being real: a trunk to `planes` features, and heads on them.

    num_classes: the logit gains the projection of the features on the class's embedding (Miyato & Koyama 2018,
    arXiv:1802.05637). turns: a head that tells by how many quarter turns an image is rotated.
    """

    def __init__(self, trunk: nn.Module, planes: int, *, num_classes: int | None = None, turns: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk = trunk
        self.real = nn.Linear(planes, 1)
        self.of_class = None if num_classes is None else nn.Embedding(num_classes, planes)
        self.turned = nn.Linear(planes, 4) if turns else None

    def forward(self, x: Tensor, y: Tensor | None = None, *, turns: bool = False) -> Tensor:
        """turns: logits [N,4] of rotations by 0, 90, 180 and 270 degrees in place of those of being real."""
        features = self.trunk(x).float()
        with torch.autocast(x.device.type, enabled=False):  # bf16 has three digits: too few for logits
            if turns:
                assert self.turned is not None
                return self.turned(features)
            logits = self.real(features).squeeze(1)
            if self.of_class is None:
                return logits
            assert y is not None
            return logits + (self.of_class(y) * features).sum(1)


class ToFeatures(nn.Module):
    """Sum or mean over the places of feature maps [N,C,H,W] -> [N,C]."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return x.float().sum((2, 3)) if self.how == "sum" else x.float().mean((2, 3))


def add_spectral_norms(network: nn.Module) -> None:
    """Divides the weight of every layer by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    An embedding of batch norm, which is scale and shift, is left as it is. Weights must have their first values.
    """
    scales = {module.embed for module in network.modules() if isinstance(module, BatchNorm)}
    for module in list(network.modules()):
        if isinstance(module, WEIGHTED | nn.Embedding) and module not in scales:
            spectral_norm(module, eps=1e-12)


@torch.no_grad()
def bake_spectral_norms(network: nn.Module, steps: int = 100) -> None:
    """Every normalised weight becomes its value after so many more steps of the power iteration."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            module.train()
            for _ in range(steps):
                _ = module.weight
            module.eval()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def init_normal(network: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0 (Radford et al. 2016, arXiv:1511.06434)."""
    for module in network.modules():
        if isinstance(module, WEIGHTED):
            nn.init.normal_(module.weight, std=0.02)
            _zero_bias(module)


def init_xavier(network: nn.Module, within: str) -> None:
    """Xavier's uniform weights, times sqrt(2) in layers whose names hold `within`: those between ReLUs; biases 0."""
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED):
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if within in name else 1.0)
            _zero_bias(module)


def _zero_bias(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
