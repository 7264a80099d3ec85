"""Functions of progress, the finished share of the run in [0,1]."""

import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", int, float)


def at(value: T | dict[float, T], progress: float) -> T:
    """A constant, or the entry of {start: value} with the last start not after progress."""
    if not isinstance(value, dict):
        return value
    return value[max(start for start in value if start <= progress)]


def cosine(progress: float) -> float:
    """Factor 1 falling to 0. Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(warmup: float) -> Callable[[float], float]:
    """Factor of the peak lr: a linear rise over the share `warmup`, then a cosine to 0. Smith & Topin 2018."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return cosine((progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0

    return factor


def step_decay(step_epochs: int, epochs: int) -> Callable[[float], float]:
    """Factor 0.1 every step_epochs epochs."""
    return lambda progress: 0.1 ** int(progress * epochs / step_epochs + 1e-9)
