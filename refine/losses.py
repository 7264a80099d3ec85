"""What refinement lowers: one value per image, lower where the classifier sees more of the target class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.attacks import Loss, cross_entropy, target_margin
from robust_models.errors import UserError


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit less the target's, [N]: of the other classes only the strongest matters."""
    return -target_margin(logits, y)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """-log(p / (1 - p)) for the target's probability p, [N]; its gradient does not fade as p approaches 1.

    Computed as the logsumexp of the other logits less the target's: the same, without the cancellation in 1 - p.
    """
    is_y = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(is_y, -torch.inf).logsumexp(dim=1) - logits[is_y]


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "log_odds": log_odds}


def find_loss(loss: str | Loss) -> Loss:
    """The loss of this name, (logits, y) -> [N]; a function is itself. Logits of several classifiers, [K,N,classes],
    give the mean of their losses.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise UserError(f"loss: {loss!r} is none of {', '.join(LOSSES)}")
    single = LOSSES[loss] if isinstance(loss, str) else loss

    def averaged(logits: Tensor, y: Tensor) -> Tensor:
        if logits.ndim == 2:
            return single(logits, y)
        return torch.stack([single(one, y) for one in logits]).mean(dim=0)

    return averaged
