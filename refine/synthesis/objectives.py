"""Objectives that several tasks have."""

from torch import Tensor, nn

from refine.synthesis.task import Objective
from robust_models.attacks import cross_entropy


def towards_class(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy to the target class, [N]."""
    return cross_entropy(model(x), y)


def faithful_outside(objective: Objective, x0: Tensor, mask: Tensor, weight: float) -> Objective:
    """objective + weight * mean over an image's numbers of ((x0 - x) (1 - mask))^2; mask [N,1,H,W] is 1 where x may go.

    The mean is over all numbers of the image, those inside the mask among them (arXiv:1906.09453, inpainting).
    """

    def both(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        change = ((x0 - x) * (1 - mask)).square().flatten(1).mean(dim=1)
        return objective(model, x, y) + weight * change

    return both
