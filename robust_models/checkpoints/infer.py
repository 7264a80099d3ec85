"""From the names and shapes of foreign tensors to an architecture's name and our names for the tensors.

The families agree with ours in mathematics (activation placement, shortcuts, strides); tests/test_checkpoint_layouts.py
compares logits with independent implementations.
"""

import re

from robust_models.checkpoints.layouts import State

MAX_BLOCKS = 200  # WideResNet-604; a hostile file may name a million

_Depths = tuple[int, ...]
_RESNETS: dict[tuple[str, _Depths], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_WIDE: dict[
    tuple[str, tuple[int, ...]], str
] = {  # torchvision; by the shape of the first 3x3 convolution, [channels, channels per group]
    ("resnet50", (128, 128)): "wide_resnet50_2",
    ("resnet101", (128, 128)): "wide_resnet101_2",
    ("resnet50", (128, 4)): "resnext50_32x4d",
    ("resnet101", (256, 8)): "resnext101_32x8d",
    ("resnet101", (256, 4)): "resnext101_64x4d",
}
_PREACT_DEPTHS: dict[_Depths, int] = {(1, 1, 1, 1): 10, (2, 2, 2, 2): 18, (3, 4, 6, 3): 34}

_POSTACT_BLOCK = {"conv1": "branch.0", "bn1": "branch.1", "conv2": "branch.3", "bn2": "branch.4"}
_POSTACT_BLOCK |= {"conv3": "branch.6", "bn3": "branch.7", "shortcut.0": "shortcut.0", "shortcut.1": "shortcut.1"}
_PREACT_BLOCK = {"bn1": "preact.0", "conv1": "branch.0", "bn2": "branch.1", "conv2": "branch.3"}
_PREACT_BLOCK |= {"shortcut.0": "shortcut", "convShortcut": "shortcut"}


def infer(state: State) -> tuple[str, State] | None:
    """(architecture, tensors under its names), or None where no family is recognised.

    Only what tells the families apart is looked at: the caller compares every name and shape.
    """
    for reader in (_imagenet_resnet, _cifar_resnet, _preact_resnet, _wide_resnet):
        if result := reader(state):
            return result
    return None


def _imagenet_resnet(state: State) -> tuple[str, State] | None:
    """torchvision's names and 7x7 stem."""
    name = _RESNETS.get((_block(state), _depths(state, r"layer(\d)\.(\d{1,4})\.conv1\.weight")))
    if name is None or _shape(state, "conv1.weight") != (64, 3, 7, 7) or "fc.weight" not in state:
        return None
    first = _shape(state, "layer1.0.conv2.weight")[:2]
    if first != (64, 64):
        name = _WIDE.get((name, first))
    return (f"torchvision:{name}", state) if name else None


def _cifar_resnet(state: State) -> tuple[str, State] | None:
    """kuangliu/pytorch-cifar's ResNet, which is also MadryLab robustness's for CIFAR."""
    name = _RESNETS.get((_block(state), _depths(state, r"layer(\d)\.(\d{1,4})\.conv1\.weight")))
    if (
        name is None
        or _shape(state, "conv1.weight") != (64, 3, 3, 3)
        or not {"bn1.weight", "linear.weight"} <= {*state}
    ):
        return None
    outer = {"conv1": "stem.0", "bn1": "stem.1", "linear": "head"}
    return name, _renamed(state, outer, r"layer(\d)\.(\d{1,4})\.(.+)", _POSTACT_BLOCK)


def _preact_resnet(state: State) -> tuple[str, State] | None:
    """kuangliu's PreActResNet with a batch norm before the head (Rice et al. 2020, RobustBench)."""
    depth = _PREACT_DEPTHS.get(_depths(state, r"layer(\d)\.(\d{1,4})\.conv1\.weight"))
    stem = _shape(state, "conv1.weight")
    if (
        depth is None
        or stem[1:] != (3, 3, 3)
        or not {"bn.weight", "linear.weight"} <= {*state}
        or "bn1.weight" in state
    ):
        return None
    name = f"preact_resnet{depth}" + (f"_w{stem[0]}" if stem[0] != 64 else "")
    outer = {"conv1": "stem", "bn": "pool.0", "linear": "head"}
    return name, _renamed(state, outer, r"layer(\d)\.(\d{1,4})\.(.+)", _PREACT_BLOCK)


def _wide_resnet(state: State) -> tuple[str, State] | None:
    """xternalz/WideResNet-pytorch's names, which TRADES and RobustBench took over."""
    depths = _depths(state, r"block(\d)\.layer\.(\d{1,4})\.conv1\.weight")
    width = _shape(state, "block1.layer.0.conv1.weight")[:1]
    if len(depths) != 3 or len(set(depths)) != 1 or not width or width[0] % 16 or width[0] == 0:
        return None
    if _shape(state, "conv1.weight") != (16, 3, 3, 3) or not {"bn1.weight", "fc.weight"} <= {*state}:
        return None
    # TRADES registers a second copy of its first group of blocks, which its forward does not use.
    used = {name: tensor for name, tensor in state.items() if not name.startswith("sub_block1.")}
    outer = {"conv1": "stem", "bn1": "pool.0", "fc": "head"}
    renamed = _renamed(used, outer, r"block(\d)\.layer\.(\d{1,4})\.(.+)", _PREACT_BLOCK)
    return f"wide_resnet_{6 * depths[0] + 4}_{width[0] // 16}", renamed


def _shape(state: State, name: str) -> tuple[int, ...]:
    return tuple(state[name].shape) if name in state else ()


def _block(state: State) -> str:
    return "bottleneck" if "layer1.0.conv3.weight" in state else "basic"


def _depths(state: State, pattern: str) -> _Depths:
    """Blocks of stages 1, 2, ... by the names that match (stage, block); () where numbers are left out."""
    found = {(int(match[1]), int(match[2])) for name in state if (match := re.fullmatch(pattern, name))}
    stages = max((stage for stage, _ in found), default=0)
    depths = tuple(sum(stage == s for stage, _ in found) for s in range(1, stages + 1))
    whole = {(s, block) for s, depth in enumerate(depths, 1) for block in range(depth)} == found
    return depths if whole and len(found) <= MAX_BLOCKS else ()


def _renamed(state: State, outer: dict[str, str], pattern: str, inner: dict[str, str]) -> State:
    """The blocks of all stages in one row, as ours are; a name that is not known stays as it is."""
    places = sorted({(int(match[1]), int(match[2])) for name in state if (match := re.fullmatch(pattern, name))})
    index = {place: i for i, place in enumerate(places)}
    result: State = {}
    for name, tensor in state.items():
        module, _, tensor_name = name.rpartition(".")
        if match := re.fullmatch(pattern, module):
            part = inner.get(match[3])
            new = part and f"blocks.{index[int(match[1]), int(match[2])]}.{part}.{tensor_name}"
        else:
            new = f"{outer[module]}.{tensor_name}" if module in outer else None
        result[new or name] = tensor
    return result
