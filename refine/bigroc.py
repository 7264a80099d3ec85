"""BIGRoC, Algorithm 1: a few targeted projected-gradient steps towards the image's class.

Ganz & Elad 2023, arXiv:2108.03702.
"""

import torch
from torch import Tensor, nn

from robust_models.attacks import PGD, frozen_eval


def bigroc(eps: float, *, steps: int = 7, step_size: float | None = None, norm: str = "l2") -> PGD:
    """The paper's loop: from the image itself, ball around it, last iterate of one run, clipped once at the end."""
    if step_size is None:
        step_size = 1.5 * eps / steps
    return PGD(eps, step_size, steps, norm=norm, targeted=True, box="last")


@torch.no_grad()
def pseudo_labels(model: nn.Module, x: Tensor) -> Tensor:
    """The class the model itself sees in each image of x [N,C,H,W], [N] int64."""
    with frozen_eval(model):
        return model(x).argmax(dim=1)


def refine(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    eps: float,
    steps: int = 7,
    step_size: float | None = None,
    norm: str = "l2",
) -> Tensor:
    """x [N,C,H,W] float in [0,1], refined towards the classes y [N] (pseudo-labels where None); same shape and range.

    eps and step_size are in [0,1] pixel units (the paper's CIFAR-10 notebooks hold pixels in [-1,1]: halve theirs).
    step_size defaults to 1.5 * eps / steps.
    """
    attack = bigroc(eps, steps=steps, step_size=step_size, norm=norm)
    return attack(model, x, pseudo_labels(model, x) if y is None else y)
