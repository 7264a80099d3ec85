"""Networks of torchvision and timm, recognised in a table of the names and shapes of each.

library_table.py makes the table (library_table.txt): a line per network, or per networks with the same tensors, the
plainest first. That they share tensors does not make them compute the same: they may differ in an activation, in
padding or in pooling, so all of them are listed.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path

from torch import Tensor

from robust_models.checkpoints.infer.match import (
    MAX_WIDTH,
    RESNETS,
    Match,
    depths,
    is_head,
    num_classes,
    shape,
    size,
)
from robust_models.checkpoints.subtrees import State

TABLE = Path(__file__).parent / "library_table.txt"
_POSITIONS = re.compile(r"(?:encoder\.)?pos_embed(?:ding)?")
_PATCHES = ("patch_embed.proj.weight", "conv_proj.weight")
_SIZE_OPTION = {"torchvision": "image_size", "timm": "img_size"}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Of all names and shapes, but for what differs between files of one network.

    That is the number of classes (rows of the heads), the number of positions (image size), and the counters of batch
    norms (not there before torch 0.4.1).
    """
    classes = num_classes(state)
    heads = {name.rpartition(".")[0] for name, tensor in state.items() if is_head(tensor) and len(tensor) == classes}
    lines = sorted(
        name if _POSITIONS.fullmatch(name) else f"{name} {_comparable(name, tensor, heads)}"
        for name, tensor in state.items()
        if not name.endswith(".num_batches_tracked")
    )
    return hashlib.blake2b("\n".join(lines).encode(errors="surrogatepass"), digest_size=6).hexdigest()


def _comparable(name: str, tensor: Tensor, heads: Set[str]) -> tuple[int | str, ...]:
    """The shape, without the number of classes."""
    shape = tuple(tensor.shape)
    return ("classes", *shape[1:]) if shape and name.rpartition(".")[0] in heads else shape


def library_network(state: State) -> Match | None:
    """The plainest network with these tensors whose own image size is that of the file, else one made for that size."""
    networks = _table().get(fingerprint(state))
    if networks is None:
        return _torchvision_resnet(state)
    pixels = _image_size(state)
    fitting = [name for name, own in networks.items() if pixels in (None, own)] or [*networks]
    arch = fitting[0]
    resized = pixels is not None and pixels != networks[arch]
    options = {_SIZE_OPTION[arch.partition(":")[0]]: pixels} if resized else {}
    also, usual = tuple(fitting[1:]), networks[arch]
    return Match(arch, state, "relu", image_size=pixels, usual_size=usual, also=also, options=options)


def _torchvision_resnet(state: State) -> Match | None:
    """torchvision's ResNets of widths and groups that have no name of their own, such as wide_resnet50_4."""
    per_stage = depths(state, r"layer(\d)\.(\d{1,4})\.conv3\.weight")
    name = RESNETS.get(("bottleneck", per_stage))
    if name is None or shape(state, "conv1.weight") != (64, 3, 7, 7) or "fc.weight" not in state:
        return None
    inner, group_width = (size(state, "layer1.0.conv2.weight", axis) for axis in (0, 1))
    if not 0 < group_width <= inner <= MAX_WIDTH or inner % group_width:
        return None
    options = {"groups": inner // group_width, "width_per_group": group_width}
    return Match(f"torchvision:{name}", state, "relu", usual_size=224, options=options)


@cache
def _table() -> dict[str, dict[str, int]]:
    """Fingerprint -> networks and the pixels of their own image size."""
    table = {}
    for line in TABLE.read_text().splitlines():
        key, *networks = line.split()
        table[key] = {name: int(size) for name, _, size in (network.partition("@") for network in networks)}
    return table


def _image_size(state: State) -> int | None:
    """Pixels of a vision transformer's images, by its positions: one for each patch and up to two tokens."""
    positions = [tensor.shape[1] for name, tensor in state.items() if _POSITIONS.fullmatch(name) and tensor.ndim == 3]
    patches = [state[name].shape[-1] for name in _PATCHES if name in state]
    if not (positions and patches):
        return None
    sides = [math.isqrt(positions[0] - tokens) for tokens in range(3) if positions[0] > tokens]
    side = next((side for tokens, side in enumerate(sides) if side * side == positions[0] - tokens), None)
    return side * patches[0] if side else None
