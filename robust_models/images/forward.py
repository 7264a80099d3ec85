"""Streams that only run forwards, read as if they had places."""

from collections.abc import Callable, Iterator
from itertools import islice
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Forward(Generic[T]):
    """Items by number out of iterators: reading on is cheap, reading backwards starts over at the last landing.

    landing(i): the last number <= i at which a stream can begin; begin(landing): the items from there on.
    """

    def __init__(self, landing: Callable[[int], int], begin: Callable[[int], Iterator[T]]) -> None:
        self.landing, self.begin = landing, begin
        self._items: Iterator[T] = iter(())
        self._position = -1
        self._lock = Lock()

    def __call__(self, start: int, stop: int) -> list[T]:
        with self._lock:
            landing = self.landing(start)
            if not landing <= self._position <= start:
                self._items, self._position = self.begin(landing), landing
            for _ in islice(self._items, start - self._position):
                pass
            items = list(islice(self._items, stop - start))
            self._position = start + len(items)
            if len(items) < stop - start:
                raise EOFError(f"the stream ended at {self._position}; expected it to reach {stop}")
            return items
