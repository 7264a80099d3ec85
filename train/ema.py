"""Exponential moving average of a network's parameters and buffers."""

import copy

import torch

from robust_models.classifier import RobustClassifier


class EMA:
    """`ema.model` trails the model it was made from; with decay 0 it equals it after every update."""

    def __init__(self, model: RobustClassifier, decay: float) -> None:
        self.model: RobustClassifier = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: RobustClassifier, step: int) -> None:
        """After optimizer step number `step` (from 0); early on the decay is lower, to forget the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
