"""A pickle reader that has no instruction to call: containers become containers, all else inert records.

The opcodes come from `pickletools.genops`, which only decodes. `pickle.Unpickler` with a strict find_class is not
enough for a hostile file: its memo is an array as long as the largest index in the file, and hashing a deeply nested
tuple ends the interpreter. `torch.load(weights_only=True)` allocates what a file asks for (`bytearray(10**12)`).
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

MAX_OPCODES = 1_000_000  # about three seconds; the optimizer state of a ResNet-152 takes some 50,000
MAX_OPEN_MARKS = 1_000


def read_pickle(stream: IO[bytes], *, persistent: Callable[[Any], Any], rebuild: Rebuild) -> Any:
    """The object of one pickle (protocols 0-5) in `stream`, which is left just behind it.

    persistent: what a persistent id stands for. rebuild: functions of ours that stand for functions of the file, by
    qualified name, in addition to those for plain containers and numpy scalars. Raises BrokenPickle, or the ValueError,
    TypeError or IndexError that decoding or a rebuild function raises.
    """
    machine = _Machine(persistent, {**PLAIN, **rebuild})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a name with a backslash makes genops warn
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise BrokenPickle(f"more than {MAX_OPCODES:,} pickle instructions")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, arg)
    raise BrokenPickle("the pickle has no end")


class _Machine:
    """The stack, the marks in it, and the memo (a dict: an index costs nothing)."""

    def __init__(self, persistent: Callable[[Any], Any], rebuild: Rebuild) -> None:
        self.persistent, self.rebuild = persistent, rebuild
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

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

    def step(self, name: str, arg: Any) -> None:
        push = self.stack.append
        if name in _VALUES:
            push(arg)
            return
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                if len(self.marks) >= MAX_OPEN_MARKS:
                    raise BrokenPickle(f"nested deeper than {MAX_OPEN_MARKS}")
                self.marks.append(len(self.stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.top
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise BrokenPickle(f"memo entry {arg} was never written")
                push(self.memo[arg])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1":
                push((self.pop(),))
            case "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(name[-1]))]
                push(tuple(reversed(items)))
            case "TUPLE":
                push(tuple(self.pop_mark()))
            case "EMPTY_LIST":
                push([])
            case "LIST":
                push(self.pop_mark())
            case "EMPTY_DICT":
                push({})
            case "DICT":
                push(plain_dict(self.pop_mark()))
            case "EMPTY_SET":
                push(set())
            case "FROZENSET":
                push(plain_set(self.pop_mark()))
            case "APPEND":
                item = self.pop()
                extend(self.top, [item])
            case "APPENDS" | "ADDITEMS":
                items = self.pop_mark()
                extend(self.top, items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                update(self.top, [key, value])
            case "SETITEMS":
                items = self.pop_mark()
                update(self.top, items)
            case "POP":
                if self.marks and self.marks[-1] == len(self.stack):
                    self.marks.pop()
                else:
                    self.pop()
            case "POP_MARK":
                self.pop_mark()
            case "DUP":
                push(self.top)
            case "PERSID":
                push(self.persistent(arg))
            case "BINPERSID":
                push(self.persistent(self.pop()))
            case _:
                self.step_object(name, arg)

    def step_object(self, name: str, arg: Any) -> None:
        """The instructions that import and call elsewhere."""
        match name:
            case "GLOBAL":
                result = Record(arg.replace(" ", ".", 1))
            case "STACK_GLOBAL":
                qualified, module = self.pop(), self.pop()
                if not (isinstance(qualified, str) and isinstance(module, str)):
                    raise BrokenPickle("a class is named by something that is not text")
                result = Record(f"{module}.{qualified}")
            case "EXT1" | "EXT2" | "EXT4":
                result = Record(f"copyreg extension {arg}")
            case "INST":
                result = self.called(Record(arg.replace(" ", ".", 1)), tuple(self.pop_mark()))
            case "OBJ":
                items = self.pop_mark()
                if not items:
                    raise BrokenPickle("an object without a class")
                result = self.called(items[0], tuple(items[1:]))
            case "REDUCE" | "NEWOBJ":
                args, function = self.pop(), self.pop()
                result = self.called(function, args)
            case "NEWOBJ_EX":
                keywords, args, function = self.pop(), self.pop(), self.pop()
                result = self.called(function, args) if keywords == {} else Record(_name(function), (args, keywords))
            case "BUILD":
                state, result = self.pop(), self.pop()
                if isinstance(result, Record):
                    result.state = state
            case _:
                raise BrokenPickle(f"instruction {name} has no place in a checkpoint")
        self.stack.append(result)

    def called(self, function: Any, args: Any) -> Any:
        known = self.rebuild.get(function.name) if isinstance(function, Record) and function.args is None else None
        return Record(_name(function), args) if known is None or not isinstance(args, tuple) else known(*args)


_VALUES = frozenset(
    "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


def _name(function: Any) -> str:
    return function.name if isinstance(function, Record) else type(function).__name__
