"""What a pickle's instructions do here: containers become containers, all else inert records; nothing is called."""

from collections.abc import Callable
from typing import IO, Any

from robust_models.checkpoints.torch_format.records import (
    PLAIN,
    BrokenPickle,
    Rebuild,
    Record,
    extend,
    plain_dict,
    plain_set,
    update,
)

MAX_OPEN_MARKS = 1_000
MAX_HANDED_ITEMS = 1_000_000
SPARE_BYTES = 1 << 20


class Machine:
    """The stack, the marks in it, and the memo (a dict: an index costs nothing). One method for each instruction."""

    def __init__(self, stream: IO[bytes], persistent: Callable[[Any], Any], rebuild: Rebuild, finish: Rebuild) -> None:
        self.stream, self.persistent_id, self.finish = stream, persistent, finish
        self.rebuild = {**PLAIN, **rebuild}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.handed_items = self.handed_bytes = 0

    @property
    def top(self) -> Any:
        """The topmost value since the last mark. BrokenPickle where there is none."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise BrokenPickle("an instruction finds the stack empty")
        return self.stack[-1]

    def pop(self) -> Any:
        """Takes the topmost value off the stack."""
        value = self.top
        del self.stack[-1]
        return value

    def pop_mark(self) -> list[Any]:
        """Takes the values since the last mark off the stack."""
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
        """Puts the instruction's argument on the stack."""
        self.stack.append(arg)

    def mark(self, _: Any) -> None:
        """Marks where a container's items begin."""
        if len(self.marks) >= MAX_OPEN_MARKS:
            raise BrokenPickle(f"nested deeper than {MAX_OPEN_MARKS}")
        self.marks.append(len(self.stack))

    def put(self, index: int) -> None:
        """Keeps the topmost value under a number."""
        self.memo[index] = self.top

    def memoize(self, _: Any) -> None:
        """Keeps the topmost value under the next number."""
        self.memo[len(self.memo)] = self.top

    def get(self, index: int) -> None:
        """Puts a kept value on the stack."""
        if index not in self.memo:
            raise BrokenPickle(f"memo entry {index} was never written")
        value = self.memo[index]
        self.stack.append(value.became if type(value) is Record and value.became is not None else value)

    def discard(self, _: Any) -> None:
        """Drops the topmost value, or the mark there."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def discard_mark(self, _: Any) -> None:
        """Drops the values since the last mark."""
        self.pop_mark()

    def duplicate(self, _: Any) -> None:
        """Puts the topmost value on the stack again."""
        self.stack.append(self.top)

    # Containers.

    def tuple_of(self, count: int) -> None:
        """A tuple of the topmost values."""
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def tuple_marked(self, _: Any) -> None:
        """A tuple of the values since the last mark."""
        self.stack.append(tuple(self.pop_mark()))

    def list_marked(self, _: Any) -> None:
        """A list of the values since the last mark."""
        self.stack.append(self.pop_mark())

    def dict_marked(self, _: Any) -> None:
        """A dict of the keys and values since the last mark."""
        self.stack.append(plain_dict(self.pop_mark()))

    def set_marked(self, _: Any) -> None:
        """A set of the values since the last mark."""
        self.stack.append(plain_set(self.pop_mark()))

    def append(self, _: Any) -> None:
        """Appends the topmost value to the container below it."""
        item = self.pop()
        extend(self.top, [item])

    def append_marked(self, _: Any) -> None:
        """Appends the values since the last mark to the container below them."""
        items = self.pop_mark()
        extend(self.top, items)

    def set_item(self, _: Any) -> None:
        """Sets the topmost key and value in the container below them."""
        value, key = self.pop(), self.pop()
        update(self.top, [key, value])

    def set_marked_items(self, _: Any) -> None:
        """Sets the keys and values since the last mark in the container below them."""
        items = self.pop_mark()
        update(self.top, items)

    # What imports and calls elsewhere.

    def persistent(self, _: Any) -> None:
        """What the persistent id on the stack stands for."""
        self.stack.append(self.persistent_id(self.pop()))

    def persistent_text(self, text: str) -> None:
        """What the persistent id in the argument stands for."""
        self.stack.append(self.persistent_id(text))

    def name(self, arg: str) -> None:
        """The record of a class or function, named by the argument."""
        self.stack.append(Record(arg.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        """The record of a class or function, named by two texts on the stack."""
        qualified, module = self.pop(), self.pop()
        if not (isinstance(qualified, str) and isinstance(module, str)):
            raise BrokenPickle("a class is named by something that is not text")
        self.stack.append(Record(f"{module}.{qualified}"))

    def extension(self, code: int) -> None:
        """The record of an entry of copyreg's registry."""
        self.stack.append(Record(f"copyreg extension {code}"))

    def instance(self, arg: str) -> None:
        """The record of an object of the class in the argument."""
        items = self.pop_mark()
        self.stack.append(self.called(Record(arg.replace(" ", ".", 1)), tuple(items)))

    def object_marked(self, _: Any) -> None:
        """The record of an object of the class behind the last mark."""
        items = self.pop_mark()
        if not items:
            raise BrokenPickle("an object without a class")
        self.stack.append(self.called(items[0], tuple(items[1:])))

    def reduce(self, _: Any) -> None:
        """What a call would give: a record, or what a function of ours makes of it."""
        args, function = self.pop(), self.pop()
        self.stack.append(self.called(function, args))

    def new_with_keywords(self, _: Any) -> None:
        """The record of an object made with keyword arguments."""
        keywords, args, function = self.pop(), self.pop(), self.pop()
        plain = isinstance(keywords, dict) and not keywords
        self.stack.append(self.called(function, args) if plain else Record(_name(function), (args, keywords)))

    def build(self, _: Any) -> None:
        """Sets the topmost value as the state of the record below it."""
        state, result = self.pop(), self.pop()
        if isinstance(result, Record):
            result.state = state
            if result.name in self.finish:
                self.charge(state)
                result.became = self.finish[result.name](result)
                result = result if result.became is None else result.became
        self.stack.append(result)

    def called(self, function: Any, args: Any) -> Any:
        """A record of the call, or what the function of ours that stands for it gives."""
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
        if self.handed_items > MAX_HANDED_ITEMS or self.handed_bytes > 3 * self.stream.tell() + SPARE_BYTES:
            raise BrokenPickle("the same data is used again and again")


def _name(function: Any) -> str:
    return function.name if isinstance(function, Record) else type(function).__name__
