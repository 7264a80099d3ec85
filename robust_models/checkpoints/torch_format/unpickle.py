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

from robust_models.checkpoints.torch_format.pickle_machine import Machine
from robust_models.checkpoints.torch_format.records import BrokenPickle, Rebuild

MAX_OPCODES = 1_000_000  # a second or two; the optimizer state of a ResNet-152 takes some 50,000


def read_pickle(
    stream: IO[bytes], *, persistent: Callable[[Any], Any], rebuild: Rebuild, finish: Rebuild | None = None
) -> Any:
    """The object of one pickle (protocols 0-5) in `stream`, which is left just behind it.

    persistent: what a persistent id stands for. rebuild: functions of ours that stand for functions of the file, by
    qualified name, in addition to those for plain containers. finish: by a record's name, what it becomes once its
    state is set (None: it stays). Raises BrokenPickle, or the ValueError, TypeError or IndexError that decoding or a
    function of rebuild or finish raises.
    """
    machine = Machine(stream, persistent, rebuild, finish or {})
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


def _table() -> dict[bytes, tuple[Callable[[Machine, Any], None], Callable[[IO[bytes]], Any] | None]]:
    """By an instruction's byte: what it does, and how its argument is read."""
    values = (
        "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
    )
    steps: dict[str, Callable[[Machine, Any], None]] = {
        **dict.fromkeys(values.split(), Machine.value),
        **dict.fromkeys(("PROTO", "FRAME"), Machine.nothing),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.put),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
        **dict.fromkeys(("EXT1", "EXT2", "EXT4"), Machine.extension),
        **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine.reduce),
        **dict.fromkeys(("APPENDS", "ADDITEMS"), Machine.append_marked),
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
        "MARK": Machine.mark,
        "MEMOIZE": Machine.memoize,
        "POP": Machine.discard,
        "POP_MARK": Machine.discard_mark,
        "DUP": Machine.duplicate,
        "TUPLE": Machine.tuple_marked,
        "LIST": Machine.list_marked,
        "DICT": Machine.dict_marked,
        "FROZENSET": Machine.set_marked,
        "APPEND": Machine.append,
        "SETITEM": Machine.set_item,
        "SETITEMS": Machine.set_marked_items,
        "PERSID": Machine.persistent_text,
        "BINPERSID": Machine.persistent,
        "GLOBAL": Machine.name,
        "STACK_GLOBAL": Machine.stack_name,
        "INST": Machine.instance,
        "OBJ": Machine.object_marked,
        "NEWOBJ_EX": Machine.new_with_keywords,
        "BUILD": Machine.build,
    }
    return {
        opcode.code.encode("latin-1"): (steps[opcode.name], opcode.arg.reader if opcode.arg else None)
        for opcode in pickletools.opcodes
        if opcode.name in steps
    }


_INSTRUCTIONS = _table()
