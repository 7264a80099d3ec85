"""kuangliu/pytorch-cifar's VGG and DenseNet, which are also MadryLab robustness's for CIFAR."""

import re

from robust_models.checkpoints.infer.match import MAX_WIDTH, Depths, Match, depths, renamed, shape, size
from robust_models.checkpoints.subtrees import State

_VGG_DEPTHS = {8: 11, 10: 13, 13: 16, 16: 19}  # by the convolutions


def vgg(state: State) -> Match | None:
    """VGG with batch norms and one linear layer, by its number of convolutions."""
    convolutions = sum(
        tensor.ndim == 4 and re.fullmatch(r"features\.\d{1,4}\.weight", name) is not None
        for name, tensor in state.items()
    )
    if convolutions not in _VGG_DEPTHS or shape(state, "features.0.weight") != (64, 3, 3, 3):
        return None
    if "features.1.running_mean" not in state or "classifier.weight" not in state:
        return None
    prefixes = {"features": "blocks", "classifier": "head"}
    parts = {name: name.partition(".") for name in state}
    ours = {f"{prefixes.get(first, first)}{dot}{rest}": state[name] for name, (first, dot, rest) in parts.items()}
    return Match(f"vgg{_VGG_DEPTHS[convolutions]}", ours)


_DENSENETS: dict[Depths, int] = {
    (6, 12, 24, 16): 121,
    (6, 12, 36, 24): 161,
    (6, 12, 32, 32): 169,
    (6, 12, 48, 32): 201,
}
_LAYER = {"bn1": "branch.0", "conv1": "branch.2", "bn2": "branch.3", "conv2": "branch.5"}
_TRANSITION = {"bn": "0", "conv": "2"}


def densenet(state: State) -> Match | None:
    """DenseNet-BC of any growth."""
    per_stage = depths(state, r"dense(\d)\.(\d{1,4})\.conv1\.weight")
    depth = _DENSENETS.get(per_stage)
    growth = size(state, "dense1.0.conv2.weight")
    if depth is None or not 0 < growth <= MAX_WIDTH or shape(state, "conv1.weight") != (2 * growth, 3, 3, 3):
        return None
    name = f"densenet{depth}" if growth == (48 if depth == 161 else 32) else f"densenet{depth}_k{growth}"

    def in_row(name: str) -> str:
        """A transition comes after the layers of its stage."""
        match = re.fullmatch(r"trans([1-3])\.(.+)", name)
        return f"dense{match[1]}.{per_stage[int(match[1]) - 1]}.{match[2]}" if match else name

    row = {in_row(name): tensor for name, tensor in state.items()}
    outer = {"conv1": "stem", "bn": "pool.0", "linear": "head"}
    return Match(name, renamed(row, outer, r"dense(\d)\.(\d{1,4})\.(.+)", _LAYER | _TRANSITION))
