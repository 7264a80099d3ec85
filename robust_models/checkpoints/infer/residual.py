"""Residual CIFAR networks, under the names of kuangliu/pytorch-cifar, xternalz/WideResNet-pytorch and their heirs."""

from robust_models.checkpoints.infer.match import (
    MAX_WIDTH,
    RESNETS,
    Depths,
    Match,
    depths,
    renamed,
    residual_block,
    shape,
    size,
)
from robust_models.checkpoints.subtrees import State

_RESNETS = {**RESNETS, ("basic", (1, 1, 1, 1)): "resnet10"}
_LAYER = r"layer(\d)\.(\d{1,4})\.(.+)"

_POSTACT_BLOCK = {"conv1": "branch.0", "bn1": "branch.1", "conv2": "branch.3", "bn2": "branch.4"}
_POSTACT_BLOCK |= {"conv3": "branch.6", "bn3": "branch.7", "shortcut.0": "shortcut.0", "shortcut.1": "shortcut.1"}
_PREACT_BLOCK = {"bn1": "preact.0", "conv1": "branch.0", "bn2": "branch.1", "conv2": "branch.3"}
_PREACT_BLOCK |= {"bn3": "branch.4", "conv3": "branch.6", "shortcut.0": "shortcut", "convShortcut": "shortcut"}
_RESNEXT_BLOCK = {"conv_reduce": "branch.0", "bn_reduce": "branch.1", "conv_conv": "branch.3", "bn": "branch.4"}
_RESNEXT_BLOCK |= {"conv_expand": "branch.6", "bn_expand": "branch.7"}
_RESNEXT_BLOCK |= {"downsample.0": "shortcut.0", "downsample.1": "shortcut.1"}


def resnet(state: State) -> Match | None:
    """kuangliu's ResNet, which is also MadryLab robustness's for CIFAR, of any width."""
    name = _kuangliu(state)
    if name is None or "bn1.weight" not in state:
        return None
    outer = {"conv1": "stem.0", "bn1": "stem.1", "linear": "head"}
    return Match(name, renamed(state, outer, _LAYER, _POSTACT_BLOCK))


def cifar_resnet(state: State) -> Match | None:
    """The networks of He et al. 2016, section 4.2, under akamaru's names (head `linear`) or torchvision's (`fc`).

    Shortcuts without weights leave no tensors; those with weights are `shortcut` or `downsample`.
    """
    per_stage = depths(state, r"layer(\d)\.(\d{1,4})\.conv1\.weight")
    width, head = (
        size(state, "conv1.weight"),
        next((name for name in ("linear", "fc") if f"{name}.weight" in state), ""),
    )
    widths = [size(state, f"layer{stage}.0.conv1.weight") for stage in (1, 2, 3)]
    if len(per_stage) != 3 or len(set(per_stage)) != 1 or residual_block(state) != "basic" or not head:
        return None
    if shape(state, "conv1.weight") != (width, 3, 3, 3) or not 0 < width <= MAX_WIDTH or "bn1.weight" not in state:
        return None
    if widths != [width, 2 * width, 4 * width]:
        return None
    weighted = any(name.startswith(("layer2.0.shortcut.", "layer2.0.downsample.")) for name in state)
    name = f"cifar_resnet{6 * per_stage[0] + 2}" + ("_b" if weighted else "") + ("" if width == 16 else f"_w{width}")
    block = _POSTACT_BLOCK | {"downsample.0": "shortcut.0", "downsample.1": "shortcut.1"}
    return Match(name, renamed(state, {"conv1": "stem.0", "bn1": "stem.1", head: "head"}, _LAYER, block))


def preact_resnet(state: State) -> Match | None:
    """kuangliu's PreActResNet, with a batch norm before the head (Rice et al. 2020) or without (Wong et al. 2020).

    Robust networks with that batch norm project act(bn(x)), those without project x; the tensors do not show which.
    """
    name = _kuangliu(state)
    if name is None or "bn1.weight" in state or "layer1.0.bn1.weight" not in state:
        return None
    with_bn, without = f"preact_{name}", f"preact_{name}_nolastbn"
    outer = {"conv1": "stem", "bn": "pool.0", "linear": "head"}
    ours = renamed(state, outer, _LAYER, _PREACT_BLOCK)
    if "bn.weight" in state:
        return Match(with_bn, ours, also=(f"{with_bn}_xshortcut",))
    return Match(f"{without}_xshortcut", ours, also=(without,))


def _kuangliu(state: State) -> str | None:
    """resnetDEPTH[_wWIDTH] by the blocks and the stem."""
    name = _RESNETS.get((residual_block(state), depths(state, r"layer(\d)\.(\d{1,4})\.conv1\.weight")))
    width = size(state, "conv1.weight")
    if name is None or not 0 < width <= MAX_WIDTH or shape(state, "conv1.weight") != (width, 3, 3, 3):
        return None
    if "linear.weight" not in state:
        return None
    return name if width == 64 else f"{name}_w{width}"


def wide_resnet(state: State) -> Match | None:
    """xternalz's names, which TRADES and RobustBench took over."""
    name = _wide(state, "conv1", [f"block{stage}" for stage in (1, 2, 3)])
    if name is None:
        return None
    # TRADES registers a second copy of its first group of blocks, which its forward does not use.
    used = {name: tensor for name, tensor in state.items() if not name.startswith("sub_block1.")}
    outer = {"conv1": "stem", "bn1": "pool.0", "fc": "head"}
    return Match(name, renamed(used, outer, r"block(\d)\.layer\.(\d{1,4})\.(.+)", _PREACT_BLOCK))


def robust_wide_resnet(state: State) -> Match | None:
    """The same blocks with widths of their own: Huang et al. 2021, arXiv:2110.03825."""
    name = _wide(state, "stem_conv", [f"blocks.{stage}" for stage in (0, 1, 2)])
    if name is None:
        return None
    outer = {"stem_conv": "stem", "bn1": "pool.0", "fc": "head"}
    return Match(name, renamed(state, outer, r"blocks\.(\d)\.layer\.(\d{1,4})\.(.+)", _PREACT_BLOCK))


def _wide(state: State, stem: str, stages: list[str]) -> str | None:
    if shape(state, f"{stem}.weight") != (16, 3, 3, 3) or not {"bn1.weight", "fc.weight"} <= {*state}:
        return None
    group, first = stages[0][:-1].replace(".", r"\."), int(stages[0][-1])
    per_stage = depths(state, group + r"(\d)\.layer\.(\d{1,4})\.conv1\.weight", first=first)
    return wide_name(per_stage, [size(state, f"{stage}.layer.0.conv1.weight") for stage in stages])


def wide_name(per_stage: Depths, widths: list[int]) -> str | None:
    """wide_resnet_DEPTH_WIDEN, or the widths where they are not 16, 32 and 64 times the same number."""
    if len(per_stage) != 3 or len(set(per_stage)) != 1 or not all(0 < width <= MAX_WIDTH for width in widths):
        return None
    first, second, third = widths
    usual = first % 16 == 0 and (second, third) == (2 * first, 4 * first)
    return f"wide_resnet_{6 * per_stage[0] + 4}_" + (f"{first // 16}" if usual else f"w{first}_{second}_{third}")


def resnext(state: State) -> Match | None:
    """Xuanyi Dong's CIFAR ResNeXt, which AugMix and RobustBench took over."""
    per_stage = depths(state, r"stage_(\d)\.(\d{1,4})\.conv_conv\.weight")
    inner, group_width = (size(state, "stage_1.0.conv_conv.weight", axis) for axis in (0, 1))
    if len(per_stage) != 3 or len(set(per_stage)) != 1 or shape(state, "conv_1_3x3.weight") != (64, 3, 3, 3):
        return None
    if not 0 < group_width <= MAX_WIDTH or not 0 < inner <= MAX_WIDTH or inner % group_width:
        return None
    outer = {"conv_1_3x3": "stem.0", "bn_1": "stem.1", "classifier": "head"}
    ours = renamed(state, outer, r"stage_(\d)\.(\d{1,4})\.(.+)", _RESNEXT_BLOCK)
    return Match(f"resnext{9 * per_stage[0] + 2}_{inner // group_width}x{group_width}d", ours)
