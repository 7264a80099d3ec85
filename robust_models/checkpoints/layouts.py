"""Whose file it is, by what it holds: where the network's tensors lie in it, and its normaliser.

Each reader takes one checkpoint apart; none looks at the file's name. Foreign words live here only.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_models.classifier import Normalizer
from robust_models.errors import UserError

State = dict[str, Tensor]

_STATES = ("state_dict", "model_state_dict", "model", "net", "network")
_EMA_STATES = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_STD_OF = {"new_mean": "new_std", "mean": "std", "mu": "sigma"}  # robustness, TRADES and torchvision, RobustBench
_MAX_NESTING = 4


@dataclass
class Found:
    """The network's tensors in a checkpoint, and what else it told."""

    layout: str
    variants: list[State]  # the tensors as the file names them, then without one wrapper's prefix after the other
    normalizer: Normalizer | None
    ignored: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)  # epoch, accuracies and other plain values beside the tensors

    @property
    def state(self) -> State:
        """The tensors under their shortest names."""
        return self.variants[-1]


def find_layout(content: Any, *, ema: bool, where: str) -> Found:
    """The classifier in what a file holds. UserError (it begins with `where`) where no tensors are found.

    ema: take the exponential moving average of the weights; UserError where the file has none.
    """
    found = _descend(content, ema=ema, where=where)
    return _read_robustness(found) or _read_plain(found)


def _descend(content: Any, *, ema: bool, where: str) -> Found:
    """Down the usual names of entries to a dict of tensors."""
    ignored: list[str] = []
    told: dict[str, Any] = {}
    trail: list[str] = []
    for _ in range(_MAX_NESTING):
        if isinstance(content, list) and content and isinstance(content[0], dict):
            # convex_adversarial saves a cascade of networks; the first one classifies every image.
            ignored += [f"[{i}]" for i in range(1, len(content))]
            content = content[0]
        if not isinstance(content, dict):
            break
        nested = [name for name in (_EMA_STATES if ema else ()) + _STATES if isinstance(content.get(name), dict | list)]
        if not nested:
            break
        for name, value in content.items():
            if isinstance(name, str) and _is_plain(value):
                told[name] = value
            elif name != nested[0]:
                ignored.append(str(name))
        trail.append(nested[0])
        content = content[nested[0]]
    if ema and not set(trail) & set(_EMA_STATES):
        raise UserError(f"{where} has no averaged weights (none of {', '.join(_EMA_STATES)}); load it without ema")
    entries = content if isinstance(content, dict) else {}
    state = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{where} holds no tensors by name ({_outline(content)}); save the network's state_dict()")
    ignored += [str(name) for name in entries if name not in state]
    layout = f"state dict under {'.'.join(trail)}" if trail else "state dict"
    return Found(layout, [state], None, ignored, told)


def _read_robustness(found: Found) -> Found | None:
    """MadryLab robustness: AttackerModel = `model`, the same again as `attacker.model`, and InputNormalize twice."""
    state = _stripped(found.state, ("module.", "_orig_mod."))[-1]
    network = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    normalizers = [prefix for prefix in ("normalizer.", "attacker.normalize.") if f"{prefix}new_mean" in state]
    if not (network and normalizers):
        return None
    ignored = sorted({".".join(name.split(".")[:2]) for name in state if name not in network})
    return Found(
        layout=f"MadryLab robustness, {found.layout}",
        variants=_stripped(network, _PREFIXES),
        normalizer=_normalizer(state, f"{normalizers[0]}new_mean"),
        ignored=[*found.ignored, *(name for name in ignored if not name.startswith(normalizers[0]))],
        told=found.told,
    )


def _read_plain(found: Found) -> Found:
    """Any other state dict, its normaliser under one of the usual names near the top."""
    state, normalizer, sequential = found.state, None, ""
    for name in state:
        *path, last = name.split(".")
        if last in _STD_OF and len(path) <= 2 and (normalizer := _normalizer(state, name)):
            std = name.removesuffix(last) + _STD_OF[last]
            state = {other: tensor for other, tensor in state.items() if other not in (name, std)}
            if re.fullmatch(r"(module\.)?0\.\w+", name):  # nn.Sequential(normalizer, network)
                sequential = "1."
            break
    prefixes = (*_PREFIXES, sequential) if sequential else _PREFIXES
    return Found(found.layout, _stripped(state, prefixes), normalizer, found.ignored, found.told)


def _normalizer(state: State, mean_name: str) -> Normalizer | None:
    """The pair of buffers, if it is one value per colour in a shape that broadcasts over pixels."""
    last = mean_name.rsplit(".", 1)[-1]
    pair = [state[mean_name], state.get(mean_name.removesuffix(last) + _STD_OF[last])]
    values: list[tuple[float, ...]] = []
    for tensor in pair:
        if tensor is None or tensor.numel() != 3 or max(tensor.shape) != 3 or not tensor.is_floating_point():
            return None
        if not torch.isfinite(tensor).all():
            return None
        values.append(tuple(tensor.flatten().tolist()))
    return Normalizer(*values) if min(values[1]) > 0 else None


def _stripped(state: State, prefixes: tuple[str, ...]) -> list[State]:
    """The state, then without the first prefix that all names share, and so on: an architecture may have a "model"."""
    variants = [state]
    for _ in range(_MAX_NESTING):
        common = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in variants[-1])]
        if not common:
            break
        variants.append({name.removeprefix(common[0]): tensor for name, tensor in variants[-1].items()})
    return variants


def _is_plain(value: Any) -> bool:
    """Small enough to keep in a description."""
    if isinstance(value, int):
        return value.bit_length() <= 64
    return isinstance(value, float) or (isinstance(value, str) and len(value) <= 1000)


def _outline(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {content!r}" if type(content).__name__ == "Record" else f"a {type(content).__name__}"
    return f"entries {', '.join(ascii(name)[:40] for name in list(content)[:6])}" if content else "an empty dict"
