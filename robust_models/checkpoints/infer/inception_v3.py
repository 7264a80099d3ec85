"""MadryLab robustness's Inception v3 for CIFAR (torchvision's names for the blocks, weiaicunzai's within them)."""

import re

from robust_models.checkpoints.infer.match import Match
from robust_models.checkpoints.subtrees import State

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_MIXED_5 = {"branch1x1": "0.0", "branch5x5": "1", "branch3x3": "2", "branchpool": "3"}
_HALVING_6 = {"branch3x3": "0.0", "branch3x3stack": "1"}
_MIXED_6 = {"branch1x1": "0.0", "branch7x7": "1", "branch7x7stack": "2", "branch_pool": "3"}
_HALVING_7 = {"branch3x3": "0", "branch7x7": "1"}
_MIXED_7 = {"branch1x1": "0.0", "branch_pool": "3", "branch3x3_1": "1.0", "branch3x3stack_1": "2.0"}
_MIXED_7 |= {"branch3x3_2a": "1.1.0.0", "branch3x3_2b": "1.1.1.0", "branch3x3stack_2": "2.1"}
_MIXED_7 |= {"branch3x3stack_3a": "2.2.0.0", "branch3x3stack_3b": "2.2.1.0"}
_BLOCKS = {**dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _MIXED_5), "Mixed_6a": _HALVING_6}
_BLOCKS |= dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _MIXED_6)
_BLOCKS |= {"Mixed_7a": _HALVING_7, "Mixed_7b": _MIXED_7, "Mixed_7c": _MIXED_7}

_PLACES = {block: f"blocks.{i}" for i, block in enumerate(_BLOCKS)}
_UNIT = {"conv": "0", "bn": "1"}


def inception(state: State) -> Match | None:
    """The architecture and its names, by three tensors that only it has together."""
    if not {"Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch5x5.0.conv.weight", "linear.weight"} <= {*state}:
        return None
    return Match("inception_v3", {_renamed(name): tensor for name, tensor in state.items()})


def _renamed(name: str) -> str:
    """A name that is not known stays as it is."""
    module, _, tensor_name = name.rpartition(".")
    if module == "linear":
        return f"head.{tensor_name}"
    if match := re.fullmatch(r"(\w+)\.(conv|bn)", module):
        if match[1] in _STEM:
            return f"stem.{_STEM.index(match[1])}.{_UNIT[match[2]]}.{tensor_name}"
    if match := re.fullmatch(r"(\w+)\.(\w+?)(\.\d)?\.(conv|bn)", module):
        branch = _BLOCKS.get(match[1], {}).get(match[2])
        if branch:
            return f"{_PLACES[match[1]]}.{branch}{match[3] or ''}.{_UNIT[match[4]]}.{tensor_name}"
    return name
