"""How far a task may go, and by which steps."""

from collections.abc import Callable
from dataclasses import dataclass

SMALL = 64  # pixels: images up to this side get the values that the paper has for CIFAR-10, larger ones those for 224


@dataclass(frozen=True)
class Ball:
    """A ball around each image, and the steps inside it; pixels in [0,1]."""

    eps: float
    step_size: float
    steps: int
    norm: str = "l2"


def by_size(small: Ball, large: Ball) -> Callable[[int], Ball]:
    """Defaults of a task: `small` for images up to SMALL pixels, else `large`."""
    return lambda side: small if side <= SMALL else large
