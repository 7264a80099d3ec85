"""This project's own residual networks, where a file has their tensors without the description."""

import re

from robust_models.checkpoints.infer.match import MAX_BLOCKS, RESNETS, Depths, Match, shape
from robust_models.checkpoints.subtrees import State

_DEPTH_NAMES = {("basic", (1, 1, 1, 1)): "10", **{key: name.removeprefix("resnet") for key, name in RESNETS.items()}}


def our_network(state: State) -> Match | None:
    """resnet, preact_resnet and wide_resnet by stem, blocks and head."""
    stages = _stages(state)
    if not stages or "head.weight" not in state:
        return None
    depths, widths = tuple(len(stage) for stage in stages), tuple(_planes(state, stage[0]) for stage in stages)
    if stem := shape(state, "stem.0.weight"):
        name = _four_stages("resnet", state, stem[0], depths, widths) or _cifar_resnet(state, stem[0])
        return Match(name, state) if name else None
    stem = shape(state, "stem.weight")
    if not stem:
        return None
    if len(depths) == 3 and len(set(depths)) == 1 and stem[0] == 16:
        depth, widen = 6 * depths[0] + 4, widths[0] // 16
        plain = widths == (16 * widen, 32 * widen, 64 * widen)
        name = f"wide_resnet_{depth}_{widen}" if plain else f"wide_resnet_{depth}_w{'_'.join(map(str, widths))}"
        return Match(name, state, also=(f"dm_{name}",) if plain else ())
    name = _four_stages("preact_resnet", state, stem[0], depths, widths)
    if name is None:
        return None
    name += "" if "pool.0.weight" in state else "_nolastbn"
    return Match(name, state, also=(f"{name}_xshortcut",))


def _four_stages(family: str, state: State, width: int, depths: Depths, widths: tuple[int, ...]) -> str | None:
    kind, factor = ("bottleneck", 4) if "blocks.0.branch.6.weight" in state else ("basic", 1)
    depth = _DEPTH_NAMES.get((kind, depths))
    if depth is None or widths != tuple(factor * width * 2**i for i in range(4)):
        return None
    return f"{family}{depth}" + (f"_w{width}" if width != 64 else "")


def _cifar_resnet(state: State, width: int) -> str | None:
    """Three stages of equally many basic blocks, by their planes: shortcuts of option A leave no tensors."""
    count = sum(re.fullmatch(r"blocks\.\d{1,4}\.branch\.0\.weight", name) is not None for name in state)
    planes = [_planes(state, block) for block in range(min(count, MAX_BLOCKS))]
    per_stage = count // 3
    if count % 3 or planes != [factor * width for factor in (1, 2, 4) for _ in range(per_stage)]:
        return None
    if "blocks.0.branch.6.weight" in state:
        return None
    weighted = f"blocks.{per_stage}.shortcut.0.weight" in state
    return f"cifar_resnet{6 * per_stage + 2}" + ("_b" if weighted else "") + (f"_w{width}" if width != 16 else "")


def _stages(state: State) -> list[list[int]]:
    """Blocks by stage; each stage after the first begins with a block whose shortcut has weights. [] where odd."""
    blocks = sorted({int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,4})\.", name))})
    if not blocks or blocks != [*range(len(blocks))] or len(blocks) > MAX_BLOCKS:
        return []
    changing = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,4})\.shortcut\.", name))}
    stages: list[list[int]] = []
    for block in blocks:
        if not stages or block in changing - {0}:
            stages.append([])
        stages[-1].append(block)
    return stages


def _planes(state: State, block: int) -> int:
    """Channels that the block's last convolution gives."""
    weights = [shape(state, f"blocks.{block}.branch.{i}.weight") for i in (0, 3, 6)]
    return next((found[0] for found in reversed(weights) if len(found) == 4), 0)
