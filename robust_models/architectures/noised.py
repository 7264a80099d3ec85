"""A network of noisy images that is told how noisy they are."""

import copy

import torch
from torch import Tensor, nn

from robust_models.errors import UserError

PIXEL_STD = 0.25  # of photographs, pixels in [0,1]


class Noised(nn.Module):
    """Normalised pixels under Gaussian noise [N,3,H,W] -> logits [N,classes]; AtNoise tells the noise, else it is none.

    The noise is a fourth channel, log(1 + sigma / 0.25) everywhere, as denoisers are told theirs (Zhang et al. 2018,
    arXiv:1710.04026); pixels are divided by what the noise makes of their standard deviation (Karras et al. 2022,
    arXiv:2206.00364).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = _with_channel(network)
        self.sigma: Tensor | None = None  # [N] or [], pixels in [0,1]

    def forward(self, x: Tensor) -> Tensor:
        sigma = x.new_zeros(1) if self.sigma is None else self.sigma.to(x)
        relative = (sigma / PIXEL_STD).view(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])
        return self.network(torch.cat([x / (1 + relative**2).sqrt(), relative.log1p()], dim=1))


class AtNoise(nn.Module):
    """x + sigma * N(0, 1) [N,3,H,W], pixels in [0,1] but for the noise -> logits, of a model that is told sigma.

    sigma: [N], or one for all. UserError for a model that was not trained on noise of all levels.
    """

    def __init__(self, model: nn.Module, sigma: Tensor) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma
        self._told = [part for part in model.modules() if isinstance(part, Noised)]
        if not self._told:
            raise UserError("noise: the classifier cannot be told of it; train one with bigroc train --noised")

    def forward(self, x: Tensor) -> Tensor:
        for network in self._told:
            network.sigma = self.sigma
        try:
            return self.model(x)
        finally:
            for network in self._told:
                network.sigma = None


def is_noised(model: nn.Module) -> bool:
    """Whether it can be told of noise."""
    return any(isinstance(part, Noised) for part in model.modules())


def _with_channel(network: nn.Module) -> nn.Module:
    """Its first convolution of pixels also takes a fourth channel, at first with weight 0. Changes the network."""
    for name, conv in network.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == 3 and conv.groups == 1:
            wider = copy.deepcopy(conv)
            wider.in_channels = 4
            wider.weight = nn.Parameter(torch.cat([conv.weight.detach(), torch.zeros_like(conv.weight[:, :1])], dim=1))
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, wider)
            return network
    raise UserError(f"arch: {type(network).__name__} has no convolution of pixels that could be told of noise")
