"""What a foreign pickle's objects become here: plain containers, numbers, and records of everything else."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_KEY_BITS = 60  # larger integers can be chosen to collide, which makes a dict quadratic

Rebuild = Mapping[str, Callable[..., Any]]


class BrokenPickle(ValueError):
    """Why a pickle cannot be read."""


class Record:
    """A class, function or object of the file, by name: nothing was imported, nothing called."""

    __slots__ = ("args", "became", "entries", "name", "state")

    def __init__(self, name: str, args: Any = None) -> None:
        self.name = name
        self.args = args  # None: the bare name; else what it would have been called with
        self.state: Any = None
        self.entries: list[Any] | None = None  # what would have been appended to it or set in it
        self.became: Any = None  # what its state turned it into, see unpickle.read_pickle

    def extend(self, entries: Iterable[Any]) -> None:
        """Keeps what the pickle appends to the object or sets in it."""
        self.entries = self.entries or []
        self.entries.extend(entries)

    def __repr__(self) -> str:
        return f"Record({self.name[:80]!a})"


def plain_key(key: Any) -> Any:
    """A key whose hash is cheap and bounded; records and tensors hash by identity.

    A tuple becomes a record: tuples can be chosen to collide, and one of a million parts is hashed at each use.
    """
    if isinstance(key, list | dict | set | bytearray):
        raise BrokenPickle("a container as a key")
    if type(key) is int and key.bit_length() > MAX_KEY_BITS:
        raise BrokenPickle("a huge integer as a key")
    return Record("a tuple as a key", key) if isinstance(key, tuple | frozenset) else key


def plain_dict(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values in turn. BrokenPickle where a value is missing."""
    if len(items) % 2:
        raise BrokenPickle("a dict with a key but no value")
    return {plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def plain_set(items: Any = ()) -> set[Any]:
    """A set of the items."""
    return {plain_key(item) for item in listed(items)}


def listed(items: Any) -> list[Any] | tuple[Any, ...]:
    """What may be walked: a tensor would make a tensor of each of its elements."""
    if not isinstance(items, list | tuple):
        raise BrokenPickle(f"a {type(items).__name__} in place of a list")
    return items


def extend(target: Any, items: list[Any]) -> None:
    """Appends the items to a list, a set or a record. BrokenPickle for anything else."""
    if isinstance(target, set):
        target.update(plain_key(item) for item in items)
    elif isinstance(target, list | Record):
        target.extend(items)
    else:
        raise BrokenPickle(f"items for a {type(target).__name__}")


def update(target: Any, items: list[Any]) -> None:
    """Sets keys and values, in turn, in a dict or a record. BrokenPickle for anything else."""
    if isinstance(target, dict):
        target.update(plain_dict(items))
    elif isinstance(target, Record):
        target.extend(zip(items[::2], items[1::2], strict=False))
    else:
        raise BrokenPickle(f"entries for a {type(target).__name__}")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {plain_key(key): value for key, value in map(listed, listed(pairs))}


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise BrokenPickle("an encoding that is not text's")
    return text.encode(encoding)


def _bytes(*args: Any) -> Any:
    """How protocol 2 writes no bytes."""
    return Record("bytes", args) if args else b""


def _new(cls: Any, *args: Any) -> Any:
    """How protocols 0 and 1 make an object: by a function of copyreg that gets the class."""
    return Record(cls.name, args) if isinstance(cls, Record) else Record("an object without a class", args)


PLAIN: Rebuild = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda *_: {},  # its entries follow; the factory stays a name
    "builtins.set": plain_set,
    "__builtin__.set": plain_set,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    "_codecs.encode": _encode,
    "torch.Size": lambda sizes=(): tuple(listed(sizes)),
    **{f"{module}.{name}": _new for module in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__")},
}
