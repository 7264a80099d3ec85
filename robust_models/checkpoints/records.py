"""What a foreign pickle's objects become here: plain containers, numbers, and records of everything else."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_KEY_BITS = 60  # larger integers can be chosen to collide, which makes a dict quadratic

Rebuild = Mapping[str, Callable[..., Any]]


class BrokenPickle(ValueError):
    """Why a pickle cannot be read."""


class Record:
    """A class, function or object of the file, by name: nothing was imported, nothing called."""

    __slots__ = ("args", "entries", "name", "state")

    def __init__(self, name: str, args: Any = None) -> None:
        self.name = name
        self.args = args  # None: the bare name; else what it would have been called with
        self.state: Any = None
        self.entries: list[Any] = []  # what would have been appended to it or set in it

    def __repr__(self) -> str:
        return f"Record({self.name[:80]!a})"


def plain_key(key: Any) -> Any:
    """A key whose hash is cheap and bounded; records and tensors hash by identity."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if isinstance(part, tuple | list | dict | set | frozenset | bytearray):
            raise BrokenPickle("a container as a key")
        if type(part) is int and part.bit_length() > MAX_KEY_BITS:
            raise BrokenPickle("a huge integer as a key")
    return key


def plain_dict(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise BrokenPickle("a dict with a key but no value")
    return {plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, set):
        target.update(plain_key(item) for item in items)
    elif isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Record):
        target.entries.extend(items)
    else:
        raise BrokenPickle(f"items for a {type(target).__name__}")


def update(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        target.update(plain_dict(items))
    elif isinstance(target, Record):
        target.entries.extend(zip(items[::2], items[1::2], strict=False))
    else:
        raise BrokenPickle(f"entries for a {type(target).__name__}")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return (
        dict(pairs) if isinstance(pairs, dict) else plain_dict([part for key, value in pairs for part in (key, value)])
    )


def plain_set(items: Any = ()) -> set[Any]:
    return {plain_key(item) for item in items}


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise BrokenPickle("an encoding that is not text's")
    return text.encode(encoding)


def _numpy_scalar(dtype: Any, raw: bytes | str) -> Any:
    """A Python number; dtype is the record of numpy.dtype("f8", ...)."""
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" and dtype.args else None
    if not (isinstance(code, str) and re.fullmatch(r"[<|]?[biuf][1248]", code)):
        return Record("numpy scalar", (dtype, raw))
    if isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">":
        code = ">" + code.lstrip("<|")
    return np.frombuffer(raw.encode("latin-1") if isinstance(raw, str) else raw, code, count=1)[0].item()


PLAIN: Rebuild = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda *_: {},  # its entries follow; the factory stays a name
    "builtins.set": plain_set,
    "__builtin__.set": plain_set,
    "_codecs.encode": _encode,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
