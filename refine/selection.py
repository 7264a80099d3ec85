"""Which images of a set to take when not all are wanted."""

import torch
from torch import Tensor


def spread(n: int, count: int) -> Tensor:
    """`count` of the numbers 0 to n - 1, or all of fewer, evenly from the first to the last, int64 ascending."""
    return torch.linspace(0, n - 1, min(n, count)).round().long().unique()


def halves(n: int, count: int) -> tuple[Tensor, Tensor]:
    """(indices that choose, indices that judge) of n images: `count` at most to choose, spread evenly, half at most."""
    chosen = spread(n, max(2, min(count, n // 2)))
    rest = torch.ones(n, dtype=torch.bool)
    rest[chosen] = False
    return chosen, rest.nonzero().squeeze(1)
