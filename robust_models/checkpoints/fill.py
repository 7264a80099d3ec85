"""From a description and tensors to a network; what does not fit is one line."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_models.architectures import build
from robust_models.checkpoints.layouts import State
from robust_models.checkpoints.outline import outline
from robust_models.classifier import Description
from robust_models.errors import UserError


def fill(description: Description, candidates: Sequence[State], path: Path) -> nn.Module:
    """The described network with the tensors of the first candidate whose names fit, or a UserError about the last."""
    builder = partial(
        build,
        description.arch,
        num_classes=description.num_classes,
        activation=description.activation,
        options=description.options,
    )
    # First without memory: a file that describes a huge network is refused before anything is allocated for it.
    network = outline(builder, tensors=len(candidates[-1]))
    expected = network.state_dict()
    states = [_with_counters(state, expected) for state in candidates]
    state = next((state for state in states if state.keys() == expected.keys()), states[-1])
    _compare(expected, state, description.arch, path)
    if _covers(state, network):
        network.load_state_dict(_own_memory(state, expected), assign=True)
    else:
        network = builder()
        network.load_state_dict(state)
    return network


def _covers(state: State, network: nn.Module) -> bool:
    """Whether the state has every tensor of the network, which then need not make any itself."""
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    tied = len({id(tensor) for _, tensor in tensors}) < len(tensors)
    loose = any(isinstance(value, Tensor) for module in network.modules() for value in vars(module).values())
    return not tied and not loose and {name for name, _ in tensors} <= state.keys()


def _own_memory(state: State, expected: State) -> State:
    """Tensors that a network may keep: of its types, dense, sharing no memory with each other or with the file."""
    taken: set[int] = set()
    own: State = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and tensor.dtype == expected[name].dtype
        alone = alone and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken
        own[name] = tensor if alone else torch.empty_like(expected[name], device="cpu").copy_(tensor)
        taken.add(own[name].untyped_storage().data_ptr())
    return own


def _with_counters(state: State, expected: State) -> State:
    """Files of torch before 0.4.1 lack the batch counters of batch norms, which inference does not use."""
    counters = [name for name in expected if name.endswith(".num_batches_tracked") and name not in state]
    return {**state, **{name: torch.tensor(0) for name in counters}}


def _compare(expected: dict[str, Tensor], state: State, arch: str, path: Path) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [ascii(name)[1:-1][:80] for name in state if name not in expected]
    if missing or unexpected:
        raise UserError(
            f"ckpt: {path} does not fit {arch}: "
            f"{len(missing)} tensors missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"ckpt: {path} does not fit {arch}: {name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
            )
