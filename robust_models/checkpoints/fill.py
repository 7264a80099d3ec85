"""From a description and tensors to a network, first without memory; what does not fit is one line."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from robust_models.architectures import build
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import Description
from robust_models.errors import UserError


def fill(description: Description, candidates: Sequence[State], path: Path, *, fresh_head: bool = False) -> nn.Module:
    """The described network with the tensors of the first candidate whose names fit, or a UserError about the last.

    fresh_head: the last linear layer begins anew where the file has none, as a backbone's has.
    """
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
    if fresh_head:
        states = [_with_fresh_head(state, network, builder) for state in states]
    state = next((state for state in states if state.keys() == expected.keys()), states[-1])
    _compare(expected, state, description.arch, path)
    _refuse_non_finite(state, network, path)
    if _covers(state, network):
        network.load_state_dict(_versioned(_own_memory(state, expected), expected), assign=True)
    else:
        network = builder()
        network.load_state_dict(_versioned(state, expected))
    return network


def _with_fresh_head(state: State, network: nn.Module, builder: Callable[[], nn.Module]) -> State:
    """The tensors, and those of a new last linear layer where nothing else is missing."""
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    missing = network.state_dict().keys() - state.keys()
    if not heads or not missing or not all(name.startswith(f"{heads[-1]}.") for name in missing):
        return state
    fresh = builder().state_dict()
    return {**state, **{name: fresh[name] for name in missing}}


def _versioned(state: State, expected: State) -> State:
    """The same tensors with the versions of their modules, which state_dict() gives and some modules ask for."""
    versioned = OrderedDict(state)
    versioned._metadata = getattr(expected, "_metadata", {})  # pyright: ignore[reportAttributeAccessIssue]
    return versioned


def _refuse_non_finite(state: State, network: nn.Module, path: Path) -> None:
    """UserError that names the first weight or running statistic with NaN or infinity; masks may hold infinity."""
    used = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    used |= {name for name in state if name.endswith((".running_mean", ".running_var"))}
    for name in sorted(used & state.keys()):
        tensor = state[name]
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            broken = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"ckpt: {path}: {name} holds {broken:,} NaN or infinite numbers of {tensor.numel():,}; such a network "
                "computes nothing, take an earlier checkpoint of that training"
            )


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


def outline(build: Callable[[], nn.Module], tensors: int) -> nn.Module:
    """The network with meta tensors, where it can be built so; `tensors`: as many as the file has.

    UserError where the network would have many times more, since a file of a few bytes may ask for a million layers.
    """
    with _at_most(1000 + 20 * tensors):
        try:
            with torch.device("meta"):
                return build()
        except (UserError, NotImplementedError) as error:
            if not isinstance(error.__cause__ or error, NotImplementedError):
                raise
            return build()  # some, such as torchvision's RegNets, compute their sizes with tensors


@contextmanager
def _at_most(registrations: int) -> Iterator[None]:
    """UserError once modules built meanwhile have registered more parameters and parts than that."""
    left = registrations

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError("arch: the network described has many times more layers than there are tensors")

    registered = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
