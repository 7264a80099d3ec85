"""Data parallel training: from its part of a batch, each rank gets to what one process gets to from the whole batch.

Gradients are averaged after the backward pass, in one message of fixed layout: nine tenths of a step are the attack,
which needs no messages, so that there is little to hide them behind; and a resumed run adds in the same order.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from robust_models.attacks import PGD
from robust_models.runtime.distributed import Ranks
from robust_models.threat import NORMS

ALONE = Ranks()


def part(whole: Tensor, ranks: Ranks, dim: int = 0) -> Tensor:
    """This rank's part of what was made for the whole batch, which lies along dim."""
    return whole.tensor_split(ranks.world, dim)[ranks.rank]


def whole(own: Tensor, ranks: Ranks) -> Tensor:
    """The parts of all ranks, equally long, one after the other along dimension 0. Carries no gradient."""
    if ranks.world == 1:
        return own
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks.world)]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def average(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Each tensor becomes its mean over the ranks, in place; one message for all."""
    if ranks.world == 1:
        return
    message = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(message)
    message /= ranks.world
    for tensor, mean in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def starts(attack: PGD, count: int, x: Tensor, generator: torch.Generator, ranks: Ranks) -> Tensor | None:
    """Where the attack starts for this rank's images x, of `count` in the whole batch; None is at the images."""
    if not attack.random_start:
        return None
    like = x.new_empty(()).expand(count, *x.shape[1:])
    return (x + part(NORMS[attack.norm].random(like, attack.eps, generator), ranks)).clamp(0, 1)
