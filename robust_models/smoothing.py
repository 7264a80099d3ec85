"""Randomized smoothing: a classifier, and the gradient of any loss, averaged over Gaussian noise around the image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_models.attacks import Loss, cross_entropy, gradient_and_loss
from robust_models.classifier import RobustClassifier
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
        check_noise(self.sigma, self.draws)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor]:
        """Gradient [N,C,H,W] and loss [N]."""
        gradient, value = torch.zeros_like(x), torch.zeros(len(x), device=x.device)
        for _ in range(self.draws):
            noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
            one_gradient, one_value = gradient_and_loss(model, x + self.sigma * noise, y, loss)
            gradient += one_gradient / self.draws
            value += one_value / self.draws
        return gradient, value


class Averaged(RobustClassifier):
    """The classifier of the mean soft-max over `draws` copies of each image, which differ as a subclass has it.

    What makes the copies differ is the same for all images and all calls: the classifier is one function, so that
    attacks and refinement see one loss, and what becomes of an image does not depend on the images beside it. A call
    costs `draws` of the network's.
    """

    def __init__(self, base: RobustClassifier, draws: int, seed: int) -> None:
        super().__init__(base.network, base.description)
        self.precision = base.precision
        self.draws, self.seed = draws, seed
        self._noise: dict[tuple[torch.Size, torch.device], Tensor] = {}
        self.to(base.device).train(base.training)

    def copies(self, x: Tensor) -> Tensor:
        """[N*draws,3,H,W]: those of the first image, then those of the second, and so on."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x [N,3,H,W] in [0,1] -> logarithms of the mean probabilities [N,classes], which serve as logits."""
        return log_mean_probabilities(super().forward(self.copies(x)), self.draws)

    def _of_images(self, features: Tensor) -> Tensor:
        """The means over the copies."""
        return features.unflatten(0, (-1, self.draws)).mean(1)

    def noise(self, x: Tensor, count: int) -> Tensor:
        """`count` draws of N(0, 1) of an image's shape, [count,3,H,W], always the same."""
        key = (x.shape[1:], x.device)
        if key not in self._noise:
            draws = torch.Generator().manual_seed(self.seed)
            self._noise[key] = torch.randn((count, *x.shape[1:]), generator=draws).to(x.device)
        return self._noise[key]

    def _find_head(self) -> str:
        return RobustClassifier(self.network, self.description).to(self.device)._find_head()


class Smoothed(Averaged):
    """The classifier of the mean soft-max over `draws` points x + sigma * N(0, 1), pixels in [0,1] and not clipped.

    Its gradient is the Monte-Carlo gradient of the smoothed soft-max. Cohen et al. 2019, arXiv:1902.02918, take votes
    in place of the mean; Salman et al. 2019, arXiv:1906.04584, this.
    """

    def __init__(self, base: RobustClassifier, sigma: float, draws: int = 16, seed: int = 0) -> None:
        check_noise(sigma, draws)
        super().__init__(base, draws, seed)
        self.sigma = sigma

    def copies(self, x: Tensor) -> Tensor:
        """[N*draws,3,H,W], each image with each draw of the noise."""
        return noisy(x, self.sigma * self.noise(x, self.draws))


class UnderNoise(nn.Module):
    """A model [N,3,H,W] -> logits [N,classes], and the noise [N,m,3,H,W] under which it sees each image of one batch.

    The logits are the logarithms of the mean probabilities over the m points; for one point, the model's own up to a
    constant. The noise stays while an attack climbs, and is that of the update after it: SmoothAdv (Salman et al.
    2019, arXiv:1906.04584) where there is an attack, Cohen et al.'s training without one and m = 1.
    """

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        """Of x [N,3,H,W], the batch that the noise was drawn for."""
        return log_mean_probabilities(self.model(noisy(x, self.noise)), self.noise.shape[1])


def check_noise(sigma: float, draws: int) -> None:
    """UserError for noise that is none."""
    if not sigma > 0:
        raise UserError(f"sigma: {sigma} is not a standard deviation above 0 (pixels in [0,1])")
    if draws < 1:
        raise UserError(f"draws: {draws} is less than 1")


def noisy(x: Tensor, noise: Tensor) -> Tensor:
    """Each image with each noise: x [N,C,H,W] and noise [m,C,H,W], or [N,m,C,H,W], give [N*m,C,H,W]."""
    return (x[:, None] + noise).flatten(0, 1)


def log_mean_probabilities(logits: Tensor, draws: int) -> Tensor:
    """Of the mean soft-max over each image's draws, logits [N*draws,classes] -> [N,classes]."""
    return logits.log_softmax(1).unflatten(0, (-1, draws)).logsumexp(1) - math.log(draws)
