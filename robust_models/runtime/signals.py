"""SIGTERM and Ctrl-C: a run saves what it has and leaves with a status that says so.

SIGTERM is what batch systems and torchrun send before they kill, SIGINT is Ctrl-C. Nothing here imports torch, so that
the handlers can be there before the seconds in which torch is imported.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from robust_models.errors import UserError

if TYPE_CHECKING:
    from robust_models.runtime.distributed import Ranks

# 75 is EX_TEMPFAIL of sysexits.h, "try again"; 143 would look like a process that SIGTERM killed. 130 is the shells'.
EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}


class Interrupted(SystemExit):
    """The process was asked to stop: it leaves with the signal's EXIT_STATUS. `cause` is "SIGTERM" or "Ctrl-C"."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(EXIT_STATUS[signal.Signals(number)])
        self.cause = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"


def leave_on_signals() -> dict[int, Any]:
    """From here on both signals raise Interrupted at once: before work has begun, and in work that keeps its parts.

    Gives the handlers that there were before, by signal; none off the main thread, which alone may set them.
    """
    _came.clear()
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, _leave) for number in EXIT_STATUS}


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """leave_on_signals() for as long as the block lasts; then the handlers are as before."""
    before = leave_on_signals()
    try:
        yield
    except Exception:
        raise_swallowed()
        raise
    finally:
        _restore(before)


_came: list[int] = []  # the signals that were raised as Interrupted


def raise_swallowed() -> None:
    """Raises Interrupted if it was raised before: for an error that may have come in its place.

    Code in C asks Python for a length or an item, takes whatever a handler raises there for "there is none", and goes
    on to an error of its own, as torch.asarray does of a storage that safetensors reads.
    """
    if _came:
        raise Interrupted(_came[0])


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            # Nothing is begun yet, and torch passes over any exception in its import of numpy: the run would go on.
            os._exit(EXIT_STATUS[signal.Signals(number)])
        frame = frame.f_back
    _came.append(number)
    raise Interrupted(number)


class StopSignals:
    """While the block lasts, SIGTERM and SIGINT are noted and raise Interrupted where the work allows it.

        with StopSignals() as stop:
            with stop.anywhere():       # for work that may be dropped halfway, such as reading the input
                state = prepare()
            for part in state:
                stop.check()            # between parts
                finish(part)

    A second signal ends the process at once. Of several ranks (set `ranks` once they have joined) all raise Interrupted
    at the same check(), whichever of them got the signal; none does so earlier.
    """

    def __init__(self, ranks: "Ranks | None" = None) -> None:
        self.ranks = ranks
        self.requested = 0  # the signal's number; 0: none came
        self._anywhere = False
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Interrupted if a signal came. Every rank must come here equally often."""
        requested = bool(self.requested)
        if self.ranks.total(requested) if self.ranks is not None else requested:
            raise Interrupted(self.requested or signal.SIGTERM)

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted at once. Several ranks wait for their next check() together."""
        self._anywhere = alone = self.ranks is None or self.ranks.world == 1
        try:
            if alone:
                self.check()
            yield
        except UserError:
            raise
        except Exception:
            self.check()  # worker processes may get the signal too, and their end is an error
            raise
        finally:
            self._anywhere = False

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            self._before = {number: signal.signal(number, self._arrived) for number in EXIT_STATUS}
        return self

    def __exit__(self, *error: object) -> None:
        _restore(self._before)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # the second one
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = number
        if self._anywhere:
            raise Interrupted(number)
