"""The state dict of a network that was pickled whole: torch.save(model), which names its classes and keeps no code."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from robust_models.checkpoints.torch_format import BrokenPickle, Record

MAX_MODULES = 100_000  # visits: a file may hold one module twice in one that it holds twice, and so on
MAX_DEPTH, MAX_NAME = 100, 1_000


def state_of_module(record: Any) -> dict[str, Tensor] | None:
    """What the pickled nn.Module's state_dict() was, by the records of its parts; None for anything else.

    Parameters and buffers under the names that modules give them; buffers that are not persistent are left out. Raises
    BrokenPickle where modules hold each other or are too many.
    """
    if _attributes(record) is None:
        return None
    state: dict[str, Tensor] = {}
    for count, (prefix, attributes) in enumerate(_modules(record, "", 0)):
        if count >= MAX_MODULES:
            raise BrokenPickle(f"more than {MAX_MODULES:,} modules in modules")
        passing = attributes.get("_non_persistent_buffers_set")
        for name, value in (*_named(attributes, "_parameters"), *_named(attributes, "_buffers")):
            if isinstance(value, Tensor) and not (isinstance(passing, set) and name in passing):
                state[f"{prefix}{name}"] = value
    return state


def _modules(record: Any, prefix: str, depth: int) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The module and those in it, in the order of state_dict(): the prefix of their names and their attributes."""
    attributes = _attributes(record)
    if attributes is None:
        return
    if depth > MAX_DEPTH or len(prefix) > MAX_NAME:
        raise BrokenPickle(f"modules nested deeper than {MAX_DEPTH}, or by names longer than {MAX_NAME}")
    yield prefix, attributes
    for name, module in _named(attributes, "_modules"):
        yield from _modules(module, f"{prefix}{name}.", depth + 1)


def _attributes(record: Any) -> dict[Any, Any] | None:
    """The attributes of a pickled nn.Module."""
    state = record.state if isinstance(record, Record) else None
    if isinstance(state, dict) and isinstance(state.get("_parameters"), dict):
        return state
    return None


def _named(attributes: dict[Any, Any], kind: str) -> Iterator[tuple[str, Any]]:
    entries = attributes.get(kind)
    if isinstance(entries, dict):
        yield from ((name, value) for name, value in entries.items() if isinstance(name, str))
