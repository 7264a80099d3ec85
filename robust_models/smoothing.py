"""Gradients averaged over noise around the image: an option of any gradient attack, whatever its ball."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_models.attacks import Loss, cross_entropy, gradient_and_loss
from robust_models.errors import UserError


@dataclass(frozen=True)
class SmoothedGradient:
    """Called like attacks.gradient_and_loss: the means over `draws` points x + sigma * N(0, 1).

    The exact mean is the gradient of the loss convolved with a Gaussian, which exists and is smooth where the loss is
    neither; in return every step costs `draws` gradients. Salman et al. 2019, arXiv:1906.04584, equation 5 (there with
    the mean inside the logarithm).
    """

    sigma: float
    draws: int = 8
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"sigma: {self.sigma} is not a standard deviation above 0 (pixels in [0,1])")
        if self.draws < 1:
            raise UserError(f"draws: {self.draws} is less than 1")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor]:
        """Gradient [N,C,H,W] and loss [N]."""
        gradient, value = torch.zeros_like(x), torch.zeros(len(x), device=x.device)
        for _ in range(self.draws):
            noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
            one_gradient, one_value = gradient_and_loss(model, x + self.sigma * noise, y, loss)
            gradient += one_gradient / self.draws
            value += one_value / self.draws
        return gradient, value
