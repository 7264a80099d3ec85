"""A pickle reader that has no instruction to call: containers become containers, all else inert records.

The instructions' arguments are decoded by `pickletools`, which only decodes. `pickle.Unpickler` with a strict
find_class is not enough for a hostile file: its memo is an array as long as the largest index in the file, and hashing
a deeply nested tuple ends the interpreter. `torch.load(weights_only=True)` allocates what a file asks for
(`bytearray(10**12)`).
"""

import pickletools
import warnings
from collections.abc import Callable
from typing import IO, Any

from robust_models.checkpoints.records import (
    PLAIN,
    BrokenPickle,
    Rebuild,
    Record,
    extend,
    plain_dict,
    plain_set,
    update,
)

MAX_OPCODES = 1_000_000  # a second or two; the optimizer state of a ResNet-152 takes some 50,000
MAX_OPEN_MARKS = 1_000
SPARE_BYTES = 1 << 20


def read_pickle(
    stream: IO[bytes], *, persistent: Callable[[Any], Any], rebuild: Rebuild, finish: Rebuild | None = None
) -> Any:
    """The object of one pickle (protocols 0-5) in `stream`, which is left just behind it.

    persistent: what a persistent id stands for. rebuild: functions of ours that stand for functions of the file, by
    qualified name, in addition to those for plain containers. finish: by a record's name, what it becomes once its
    state is set (None: it stays). Raises BrokenPickle, or the ValueError, TypeError or IndexError that decoding or a
    function of rebuild or finish raises.
    """
    machine = _Machine(stream, persistent, {**PLAIN, **rebuild}, finish or {})
    read = stream.read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a name with a backslash makes pickletools warn
        for _ in range(MAX_OPCODES):
            code = read(1)
            if code == b".":
                return machine.pop()
            if code not in _INSTRUCTIONS:
                unknown = f"{code!r} is no instruction that a checkpoint has"
                raise BrokenPickle(unknown if code else "the pickle has no end")
            step, decode = _INSTRUCTIONS[code]
            step(machine, decode and decode(stream))
    raise BrokenPickle(f"more than {MAX_OPCODES:,} pickle instructions")


class _Machine:
    """The stack, the marks in it, and the memo (a dict: an index costs nothing). One method for each instruction."""

    def __init__(self, stream: IO[bytes], persistent: Callable[[Any], Any], rebuild: Rebuild, finish: Rebuild) -> None:
        self.stream, self.persistent_id, self.rebuild, self.finish = stream, persistent, rebuild, finish
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.handed_items = self.handed_bytes = 0

    @property
    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise BrokenPickle("an instruction finds the stack empty")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top
        del self.stack[-1]
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise BrokenPickle("an instruction finds no mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # Values, the stack and the memo.

    def nothing(self, _: Any) -> None:
        """The protocol's number and frames mean nothing here."""

    def value(self, arg: Any) -> None:
        self.stack.append(arg)

    def mark(self, _: Any) -> None:
        if len(self.marks) >= MAX_OPEN_MARKS:
            raise BrokenPickle(f"nested deeper than {MAX_OPEN_MARKS}")
        self.marks.append(len(self.stack))

    def put(self, index: int) -> None:
        self.memo[index] = self.top

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise BrokenPickle(f"memo entry {index} was never written")
        value = self.memo[index]
        self.stack.append(value.became if type(value) is Record and value.became is not None else value)

    def discard(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def discard_mark(self, _: Any) -> None:
        self.pop_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.top)

    # Containers.

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def tuple_marked(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def list_marked(self, _: Any) -> None:
        self.stack.append(self.pop_mark())

    def dict_marked(self, _: Any) -> None:
        self.stack.append(plain_dict(self.pop_mark()))

    def set_marked(self, _: Any) -> None:
        self.stack.append(plain_set(self.pop_mark()))

    def append(self, _: Any) -> None:
        item = self.pop()
        extend(self.top, [item])

    def append_marked(self, _: Any) -> None:
        items = self.pop_mark()
        extend(self.top, items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        update(self.top, [key, value])

    def set_marked_items(self, _: Any) -> None:
        items = self.pop_mark()
        update(self.top, items)

    # What imports and calls elsewhere.

    def persistent(self, _: Any) -> None:
        self.stack.append(self.persistent_id(self.pop()))

    def persistent_text(self, text: str) -> None:
        self.stack.append(self.persistent_id(text))

    def name(self, arg: str) -> None:
        self.stack.append(Record(arg.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        qualified, module = self.pop(), self.pop()
        if not (isinstance(qualified, str) and isinstance(module, str)):
            raise BrokenPickle("a class is named by something that is not text")
        self.stack.append(Record(f"{module}.{qualified}"))

    def extension(self, code: int) -> None:
        self.stack.append(Record(f"copyreg extension {code}"))

    def instance(self, arg: str) -> None:
        items = self.pop_mark()
        self.stack.append(self.called(Record(arg.replace(" ", ".", 1)), tuple(items)))

    def object_marked(self, _: Any) -> None:
        items = self.pop_mark()
        if not items:
            raise BrokenPickle("an object without a class")
        self.stack.append(self.called(items[0], tuple(items[1:])))

    def reduce(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self.stack.append(self.called(function, args))

    def new_with_keywords(self, _: Any) -> None:
        keywords, args, function = self.pop(), self.pop(), self.pop()
        plain = isinstance(keywords, dict) and not keywords
        self.stack.append(self.called(function, args) if plain else Record(_name(function), (args, keywords)))

    def build(self, _: Any) -> None:
        state, result = self.pop(), self.pop()
        if isinstance(result, Record):
            result.state = state
            if result.name in self.finish:
                self.charge(state)
                result.became = self.finish[result.name](result)
                result = result if result.became is None else result.became
        self.stack.append(result)

    def called(self, function: Any, args: Any) -> Any:
        known = self.rebuild.get(function.name) if isinstance(function, Record) and function.args is None else None
        if known is None or not isinstance(args, tuple):
            return Record(_name(function), args)
        self.charge(args)
        return known(*args)

    def charge(self, args: Any) -> None:
        """Functions of ours may copy what they are given, and a file may give the same thing a million times."""
        for arg in args if isinstance(args, tuple) else ():
            if isinstance(arg, str | bytes | bytearray):
                self.handed_bytes += len(arg)
            elif isinstance(arg, list | tuple | dict | set):
                self.handed_items += len(arg)
        if self.handed_items > MAX_OPCODES or self.handed_bytes > 3 * self.stream.tell() + SPARE_BYTES:
            raise BrokenPickle("the same data is used again and again")


def _name(function: Any) -> str:
    return function.name if isinstance(function, Record) else type(function).__name__


def _table() -> dict[bytes, tuple[Callable[[_Machine, Any], None], Callable[[IO[bytes]], Any] | None]]:
    """By an instruction's byte: what it does, and how its argument is read."""
    values = (
        "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
    )
    steps: dict[str, Callable[[_Machine, Any], None]] = {
        **dict.fromkeys(values.split(), _Machine.value),
        **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
        **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
        **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
        **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.append_marked),
        "NONE": lambda machine, _: machine.stack.append(None),
        "NEWTRUE": lambda machine, _: machine.stack.append(True),
        "NEWFALSE": lambda machine, _: machine.stack.append(False),
        "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
        "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
        "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
        "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
        "TUPLE1": lambda machine, _: machine.tuple_of(1),
        "TUPLE2": lambda machine, _: machine.tuple_of(2),
        "TUPLE3": lambda machine, _: machine.tuple_of(3),
        "MARK": _Machine.mark,
        "MEMOIZE": _Machine.memoize,
        "POP": _Machine.discard,
        "POP_MARK": _Machine.discard_mark,
        "DUP": _Machine.duplicate,
        "TUPLE": _Machine.tuple_marked,
        "LIST": _Machine.list_marked,
        "DICT": _Machine.dict_marked,
        "FROZENSET": _Machine.set_marked,
        "APPEND": _Machine.append,
        "SETITEM": _Machine.set_item,
        "SETITEMS": _Machine.set_marked_items,
        "PERSID": _Machine.persistent_text,
        "BINPERSID": _Machine.persistent,
        "GLOBAL": _Machine.name,
        "STACK_GLOBAL": _Machine.stack_name,
        "INST": _Machine.instance,
        "OBJ": _Machine.object_marked,
        "NEWOBJ_EX": _Machine.new_with_keywords,
        "BUILD": _Machine.build,
    }
    return {
        opcode.code.encode("latin-1"): (steps[opcode.name], opcode.arg.reader if opcode.arg else None)
        for opcode in pickletools.opcodes
        if opcode.name in steps
    }


_INSTRUCTIONS = _table()
