"""BIGRoC, Algorithm 1: a few targeted projected-gradient steps towards the image's class.

Ganz & Elad 2023, arXiv:2108.03702.
"""

import torch
from torch import Tensor, nn

from refine.ensemble import consensus
from refine.losses import find_loss
from robust_models.attacks import PGD, Loss, frozen_eval


def bigroc(
    eps: float,
    *,
    steps: int = 7,
    step_size: float | None = None,
    norm: str = "l2",
    center: str = "input",
    keep: str = "last",
    loss: str | Loss = "ce",
) -> PGD:
    """The paper's loop: from the image itself, ball around it, last iterate of one run, clipped once at the end.

    eps and step_size are in [0,1] pixel units, step_size by default 1.5 * eps / steps.

    center="first_step" is the loop of the authors' notebooks: the ball lies around the point after step 1, so that
    images move up to eps + step_size, and every step is clipped. Their CIFAR-10 notebooks hold pixels in [-1,1]: halve
    their eps. keep="best" takes each image's best iterate, which may be the image itself; as it compares images, it
    clips every step too. loss: ce, margin, log_odds, or a function (logits, y) -> [N].
    """
    as_in_the_paper = center == "input" and keep == "last"
    return PGD(
        eps,
        1.5 * eps / max(steps, 1) if step_size is None else step_size,
        steps,
        norm=norm,
        targeted=True,
        box="last" if as_in_the_paper else "every_step",
        center=center,
        keep=keep,
        loss=find_loss(loss),
    )


@torch.no_grad()
def pseudo_labels(model: nn.Module, x: Tensor) -> Tensor:
    """The class that the model sees in each image of x [N,C,H,W], [N] int64; of several models, by mean probability."""
    with frozen_eval(model):
        return consensus(model(x)).argmax(dim=1)


def trajectory(attack: PGD, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """x [N,C,H,W] after 0, 1, ... steps of the attack, clipped to [0,1]: attack.steps + 1 batches of images."""
    with frozen_eval(model):
        return [iterate.x_adv.clamp(0, 1) for iterate in attack.iterates(model, x, y, x)]
