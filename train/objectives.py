"""What a training step minimises."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.attacks import PGD


def adversarial_cross_entropy(
    model: nn.Module, attack: PGD, x: Tensor, y: Tensor, *, label_smoothing: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy on attacked images and their logits [N,classes]. Madry et al. 2018, arXiv:1706.06083."""
    x_adv = attack(model, x, y, generator=generator)
    logits = model(x_adv)
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing), logits
