"""What a training step minimises: how images, and perhaps weights, are attacked, and the loss on what comes out.

y is [N] int64, or [N,classes] probabilities where images were mixed; F.cross_entropy takes both.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.attacks import PGD, frozen_eval
from robust_models.runtime.distributed import Ranks
from train.parallel import ALONE, average, part, starts

TRADES_START = 1e-3  # std of the noise at the start: at the image itself the KL divergence is flat


class Objective(ABC):
    """`x_adv = attacked(...)`, then `loss(...)` on it, in the model's training mode."""

    @abstractmethod
    def attacked(
        self, model: nn.Module, attack: PGD, x: Tensor, y: Tensor, generator: torch.Generator, ranks: Ranks = ALONE
    ) -> Tensor:
        """x_adv [N,C,H,W]; the generator draws for the images of all ranks."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, and the logits [N,classes] of x_adv."""


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy on attacked images. Madry et al. 2018, arXiv:1706.06083."""

    label_smoothing: float = 0.0

    def attacked(
        self, model: nn.Module, attack: PGD, x: Tensor, y: Tensor, generator: torch.Generator, ranks: Ranks = ALONE
    ) -> Tensor:
        """PGD on the cross-entropy with y."""
        return attack.unchecked(model, x, y, start=starts(attack, len(x) * ranks.world, x, generator, ranks))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of x_adv, with smoothed labels."""
        logits = model(x_adv)
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing), logits


@dataclass(frozen=True)
class Trades(Objective):
    """Cross-entropy on clean images + beta * KL(prediction on x || on x_adv). Zhang et al. 2019, arXiv:1901.08573.

    The attack maximises the same divergence, from the prediction in evaluation mode.
    """

    beta: float = 6.0
    label_smoothing: float = 0.0

    def attacked(
        self, model: nn.Module, attack: PGD, x: Tensor, y: Tensor, generator: torch.Generator, ranks: Ranks = ALONE
    ) -> Tensor:
        """PGD on the divergence from the prediction on x, from a small noise around x."""
        if attack.steps == 0:
            return x
        with torch.no_grad(), frozen_eval(model):
            probs = model(x).softmax(1)
        count = len(x) * ranks.world
        noise = torch.randn((count, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
        start = starts(attack, count, x, generator, ranks)
        if start is None:
            start = (x + TRADES_START * part(noise, ranks)).clamp(0, 1)
        return replace(attack, loss=divergence).unchecked(model, x, probs, start=start)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of x, with smoothed labels, + beta * divergence between x and x_adv."""
        clean, logits = model(x), model(x_adv)
        robust = divergence(logits, clean.softmax(1)).mean()
        return F.cross_entropy(clean, y, label_smoothing=self.label_smoothing) + self.beta * robust, logits


def divergence(logits: Tensor, probs: Tensor) -> Tensor:
    """KL(probs || softmax(logits)) of each sample, [N]."""
    return F.kl_div(logits.log_softmax(1), probs, reduction="none").sum(1)


@contextmanager
def adversarial_weights(model: nn.Module, loss: Tensor, size: float, ranks: Ranks = ALONE) -> Iterator[None]:
    """Adversarial weight perturbation. Wu et al. 2020, arXiv:2004.05884.

    Inside, every weight tensor w is moved along its gradient of `loss` by size * |w|; after, it is as it was.

    Gradients taken inside, where the loss is worst, lead to weights in whose neighbourhood it is flat. Scales and
    offsets (one-dimensional parameters) stay. `loss` is that of this rank; the gradient is the mean of all ranks'.
    """
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    gradients = torch.autograd.grad(loss, weights)
    average(gradients, ranks)
    with torch.no_grad():
        kept = [weight.clone() for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            weight.add_(gradient * (size * weight.norm() / length))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
