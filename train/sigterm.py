"""SIGTERM, which batch systems and torchrun send before they kill: the run saves its state and leaves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from robust_models.errors import UserError
from robust_models.runtime.distributed import Ranks
from train.parallel import ALONE

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "try again"; 143 would look like a process that SIGTERM killed


class Interrupted(SystemExit):
    """The process leaves with EXIT_STATUS."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class Sigterm:
    """While the block lasts, SIGTERM is noted and raises Interrupted at the next `obey()`; at once in `at_once()`.

    Of several ranks, all raise it at the same `obey()`, whichever of them got the signal; none does so earlier.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.requested = False
        self._at_once = False

    def obey(self) -> None:
        """Every rank must come here equally often."""
        if self.ranks.total(self.requested):
            raise Interrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that may be dropped halfway. Several ranks obey when they next do so together."""
        self._at_once = alone = self.ranks.world == 1
        try:
            if alone:
                self.obey()
            yield
        except UserError:
            raise
        except Exception:
            self.obey()  # a loader's worker processes get the signal too, and their end is an error
            raise
        finally:
            self._at_once = False

    def __enter__(self) -> "Sigterm":
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            self._before: Any = signal.signal(signal.SIGTERM, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._at_once:
            raise Interrupted
