"""Randomness as a function of (seed, purpose, index): a resumed run draws what an uninterrupted one would."""

import numpy as np
import torch

ORDER, STEP, EVALUATION, DRAW, BLOCK = range(5)  # purposes: independent streams under one seed


def generator(device: torch.device | str, seed: int, purpose: int, index: int) -> torch.Generator:
    """A fresh generator on the device."""
    state = np.random.SeedSequence((seed, purpose, index)).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(state))
