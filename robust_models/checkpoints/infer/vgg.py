"""kuangliu/pytorch-cifar's VGG with batch norms, which is also MadryLab robustness's for CIFAR."""

import re

from robust_models.checkpoints.infer.match import Match, shape
from robust_models.checkpoints.layouts import State

_DEPTHS = {8: 11, 10: 13, 13: 16, 16: 19}  # by the convolutions


def vgg(state: State) -> Match | None:
    convolutions = sum(
        tensor.ndim == 4 and re.fullmatch(r"features\.\d{1,4}\.weight", name) is not None
        for name, tensor in state.items()
    )
    if convolutions not in _DEPTHS or shape(state, "features.0.weight") != (64, 3, 3, 3):
        return None
    if "features.1.running_mean" not in state or "classifier.weight" not in state:
        return None
    prefixes = {"features": "blocks", "classifier": "head"}
    parts = {name: name.partition(".") for name in state}
    ours = {f"{prefixes.get(first, first)}{dot}{rest}": state[name] for name, (first, dot, rest) in parts.items()}
    return Match(f"vgg{_DEPTHS[convolutions]}", ours)
