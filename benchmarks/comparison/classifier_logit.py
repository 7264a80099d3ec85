"""A classifier in the discriminator's place: its logits are those of an energy-based model of images.

Grathwohl et al. 2020, arXiv:1912.03263: log p(x|y) is the logit of y, log p(x) the logarithm of the sum of the logits'
exponentials, up to constants. So methods that need a density ratio can do without the generator's own discriminator.
"""

from typing import Any

from torch import Tensor, nn


class ClassifierLogit(nn.Module):
    """x in the range `pixels` (and y) -> logits [N]."""

    def __init__(self, classifier: nn.Module, pixels: str) -> None:
        super().__init__()
        self.classifier: Any = classifier
        self.pixels = pixels

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.classifier((x + 1) / 2 if self.pixels == "symmetric" else x)
        return logits.logsumexp(1) if y is None else logits.gather(1, y[:, None]).squeeze(1)
