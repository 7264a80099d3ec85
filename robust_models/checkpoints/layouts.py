"""Whose file it is, by what it holds: where the network's tensors lie in it, and its normaliser.

Each reader takes one checkpoint apart; none looks at the file's name. Foreign words live here only.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_models.checkpoints.pickled_module import state_of_module
from robust_models.checkpoints.subtrees import State, find_network
from robust_models.checkpoints.torch_format import BrokenPickle, Record
from robust_models.classifier import Normalizer
from robust_models.errors import UserError

_STATES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "student", "shadow", "params")
_STATES += ("weights", "model_weights", "network_state_dict", "state")  # Composer nests the model in its state
_EMA_STATES = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "params_ema", "ema_weights")
_EMA_STATES += ("swa", "swa_state_dict", "swa_model", "swa_model_state_dict", "averaged_model", "model_swa")
_MAX_LISTED = 16  # numbers of a small tensor, such as accuracies by class
_SETTINGS = ("hyper_parameters", "hparams", "args", "config")
_STD_OF = {"new_mean": "new_std", "mean": "std", "mu": "sigma"}  # robustness, TRADES and torchvision, RobustBench
_MAX_NESTING = 4
_MAX_NORMALIZER_DEPTH = 3  # names before "mean": model.normalize.mean, module.model.0.mean


@dataclass
class Found:
    """The network's tensors in a checkpoint, and what else it states."""

    layout: str
    variants: list[State]  # the tensors as the file names them, then without one wrapper's prefix after the other
    normalizer: Normalizer | None
    ignored: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)  # epoch, accuracies and other plain values
    # What only some layouts state (a Hugging Face folder's config.json does); None: not stated.
    arch: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None
    class_names: tuple[str, ...] | None = None
    image_size: int | None = None
    assumed: dict[str, str] = field(default_factory=dict)  # as Description.assumptions

    @property
    def state(self) -> State:
        """The tensors under their shortest names."""
        return self.variants[-1]


def find_layout(content: Any, *, ema: bool, where: str) -> Found:
    """The classifier in what a file holds. UserError (it begins with `where`) where no tensors are found.

    ema: take the exponential moving average of the weights; UserError where the file has none.
    """
    try:
        entries = _descend(content, ema=ema, where=where)
    except BrokenPickle as error:
        raise UserError(f"{where} is broken ({error})") from error
    found, averaged = _read_robustness(entries), False
    if found is None:
        found, averaged = _read_plain(entries, ema=ema)
    if ema and not (averaged or entries.averaged):
        raise UserError(f"{where} has no averaged weights (none of {', '.join(_EMA_STATES)}); load it without ema")
    return found


@dataclass
class _Entries:
    """The dict of tensors in a file, and the entries on the way to it."""

    layout: str
    state: State
    ignored: list[str]
    metadata: dict[str, Any]
    averaged: bool


def _descend(content: Any, *, ema: bool, where: str) -> _Entries:
    """Down the usual names of entries to a dict of tensors."""
    ignored: list[str] = []
    metadata: dict[str, Any] = {}
    trail: list[str] = []
    family, averaged = "", False
    for _ in range(_MAX_NESTING):
        content, left_out = _as_dict(content)
        ignored += left_out
        if not isinstance(content, dict):
            break
        if "pytorch-lightning_version" in content:
            family = "Lightning, "
            averaged = ema and "averaging_state" in content
        name = _next_entry(content, ema=ema)
        if name is None:
            break
        for other, value in content.items():
            if isinstance(other, str) and (plain := _plain(other, value)) is not None:
                metadata[other] = plain
            elif other != name:
                ignored.append(str(other))
        trail.append(name)
        averaged |= name in _EMA_STATES
        content = content[name]
    entries = content if isinstance(content, dict) else {}
    state = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state and (only := [name for name in _EMA_STATES if _is_nested(entries.get(name))]):
        raise UserError(f"{where} holds averaged weights only (under {only[0]}); load it with ema")
    if not state:
        raise UserError(f"{where} holds no tensors by name ({_outline(content)}); save the network's state_dict()")
    ignored += [str(name) for name in entries if name not in state]
    layout = f"{family}state dict under {'.'.join(trail)}" if trail else "state dict"
    return _Entries(layout, state, ignored, metadata, averaged)


def _next_entry(content: dict[Any, Any], *, ema: bool) -> str | None:
    """The entry that holds the network, or a further dict around it."""
    if "current_model_state" in content and "averaging_state" in content:
        return "state_dict" if ema else "current_model_state"  # Lightning's WeightAveraging exchanges the two
    names = (*_EMA_STATES, *_STATES) if ema else _STATES
    return next((name for name in names if _is_nested(content.get(name))), None)


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list) or (isinstance(value, Record) and state_of_module(value) is not None)


def _as_dict(content: Any) -> tuple[Any, list[str]]:
    """A pickled module's tensors by name, the first network of a list; anything else as it is. And what is left out."""
    if (
        isinstance(content, list | tuple)
        and (first := next((i for i, v in enumerate(content) if _is_nested(v)), -1)) >= 0
    ):
        # convex_adversarial saves a cascade of networks, of which the first classifies every image; others save
        # (state_dict, epoch).
        return content[first], [f"[{i}]" for i in range(len(content)) if i != first]
    if isinstance(content, Record) and (state := state_of_module(content)):
        return state, []
    return content, []


def _read_robustness(entries: _Entries) -> Found | None:
    """MadryLab robustness: AttackerModel = `model`, the same again as `attacker.model`, and InputNormalize twice."""
    state = entries.state
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    network = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    normalizers = [prefix for prefix in ("normalizer.", "attacker.normalize.") if f"{prefix}new_mean" in state]
    if not (network and normalizers):
        return None
    ignored = sorted({".".join(name.split(".")[:2]) for name in state if name not in network})
    return Found(
        layout=f"MadryLab robustness, {entries.layout}",
        variants=find_network(network, ema=False).variants,
        normalizer=_normalizer(state, f"{normalizers[0]}new_mean"),
        ignored=[*entries.ignored, *(name for name in ignored if not name.startswith(normalizers[0]))],
        metadata=entries.metadata,
    )


def _read_plain(entries: _Entries, *, ema: bool) -> tuple[Found, bool]:
    """Any other state dict, its normaliser under one of the usual names near the top; and whether it is averaged."""
    state, normalizer, numbered = entries.state, None, ""
    for name in state:
        *path, last = name.split(".")
        if last in _STD_OF and len(path) <= _MAX_NORMALIZER_DEPTH and (normalizer := _normalizer(state, name)):
            std = name.removesuffix(last) + _STD_OF[last]
            state = {other: tensor for other, tensor in state.items() if other not in (name, std)}
            if path and path[-1] == "0":  # nn.Sequential(normalizer, network)
                numbered = "1"
            break
    network = find_network(state, ema=ema, numbered=numbered)
    ignored = [*entries.ignored, *network.ignored]
    found = Found(entries.layout, network.variants, normalizer, ignored, entries.metadata)
    return found, network.averaged


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


def _plain(name: str, value: Any) -> Any:
    """A value, or the values among settings, that a description can keep; None where there are none."""
    if name in _SETTINGS and isinstance(value, dict):
        kept = {key: item for key, item in list(value.items())[:100] if isinstance(key, str) and _is_plain(item)}
        return kept or None
    if isinstance(value, Tensor) and value.numel() <= _MAX_LISTED:
        return value.tolist()
    return value if _is_plain(value) else None


def _is_plain(value: Any) -> bool:
    """Small enough to keep in a description."""
    if isinstance(value, int):
        return value.bit_length() <= 64
    return isinstance(value, float) or (isinstance(value, str) and len(value) <= 1000)


def _outline(content: Any) -> str:
    if isinstance(content, Record):
        return f"a pickled {ascii(content.name)[1:-1][:80]}, which needs its own code"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return f"entries {', '.join(ascii(name)[:40] for name in list(content)[:6])}" if content else "an empty dict"
