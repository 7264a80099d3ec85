"""Which part of a state dict is the network, by its names: wrappers' prefixes, second copies, losses and metrics."""

import re
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]

_WRAPPERS = {"model", "net", "network", "module", "_orig_mod", "student", "online_model", "backbone"}
_AVERAGE = re.compile(r"(?:^|_)(ema|swa|averaged?)(?:_|$)")
_BESIDE = re.compile(
    r"(?:^|_)(ema|swa|averaged?|teacher|target|momentum|criterion|loss(es)?|metrics?|acc(uracy)?)(?:_|$)"
)
_MAX_NESTING = 6


@dataclass
class Network:
    """The network's tensors in a state dict."""

    variants: list[State]  # as they were, then under shorter and shorter names; the likeliest last
    ignored: list[str]  # names of the modules and buffers beside it
    averaged: bool  # its weights are a running average


def find_network(state: State, *, ema: bool, numbered: str = "") -> Network:
    """The network in `state`: all of it, or the one module that the others stand beside.

    The first variants keep all names, since an architecture may have a "model" of its own. ema: take an averaged copy
    where there is one. numbered: a number that is a wrapper's name too ("1" in nn.Sequential(normalizer, network)).
    """
    network = Network([state], [], averaged=False)
    for _ in range(_MAX_NESTING):
        state = network.variants[-1]
        modules = _modules(state)
        network.averaged |= "n_averaged" in state  # torch.optim.swa_utils.AveragedModel
        chosen, is_certain = _chosen(modules, ema=ema)
        alone = numbered or ("1" if len(modules) == 1 else "")  # beside a normaliser that holds no tensors
        if chosen is None or (chosen.isdigit() and chosen != alone):
            break
        if not is_certain:
            network.variants.insert(-1, modules[chosen])
            break
        network.averaged |= bool(_AVERAGE.search(chosen))
        network.ignored += [name for name in modules if name != chosen]
        network.variants.append(modules[chosen])
    return network


def _modules(state: State) -> dict[str, State]:
    """What the top-level modules hold; a tensor without a module counts as one that holds a tensor without a name."""
    modules: dict[str, State] = {}
    for name, tensor in state.items():
        top, _, rest = name.partition(".")
        modules.setdefault(top, {})[rest] = tensor
    return modules


def _chosen(modules: dict[str, State], *, ema: bool) -> tuple[str | None, bool]:
    """(the module that is the network, whether that is certain); None where all are parts of one network."""
    networks = [name for name, tensors in modules.items() if _has_weights(tensors)]
    averages = [name for name in networks if _AVERAGE.search(name)]
    if ema and averages:
        return averages[0], True
    beside = {name for name in modules if _BESIDE.search(name)}
    networks = [name for name in networks if name not in beside]
    if not networks:
        return None, False
    parts = [name for name, tensors in modules.items() if name not in beside and _may_belong(tensors)]
    likeliest = max(networks, key=lambda name: (name in _WRAPPERS, _elements(modules[name])))
    if parts == networks == [likeliest] or all(_classifies(modules[name]) for name in parts):
        return likeliest, True
    return (likeliest if likeliest in _WRAPPERS else None), False


def _has_weights(tensors: State) -> bool:
    return any(name and tensor.ndim > 1 and tensor.is_floating_point() for name, tensor in tensors.items())


def _may_belong(tensors: State) -> bool:
    """Not counters, and not a single vector such as the weights of classes in a loss."""
    return any(tensor.is_floating_point() and tensor.ndim > (0 if name else 1) for name, tensor in tensors.items())


def _classifies(tensors: State) -> bool:
    """It has both a first convolution, of RGB, and a matrix."""
    shapes = [tensor.shape for tensor in tensors.values()]
    return any(len(s) == 4 and s[1] == 3 for s in shapes) and any(len(s) == 2 for s in shapes)


def _elements(tensors: State) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
