"""Adversarial weight perturbation. Wu et al. 2020, arXiv:2004.05884."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_models.runtime.distributed import Ranks
from train.parallel import ALONE, average


@contextmanager
def adversarial_weights(model: nn.Module, loss: Tensor, size: float, ranks: Ranks = ALONE) -> Iterator[None]:
    """Inside, every weight tensor w is moved along its gradient of `loss` by size * |w|; after, it is as it was.

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
