"""One worker computes, one run after the other; each run's messages wait for its reader in a box of bounded size.

A message is four bytes of length (little-endian, of what follows), a letter, and the content: J, JSON; F, a frame: step
(uint32), objective, confidence (float32, NaN where there is none), seconds since the first one (float32), height, width
(uint16), then the pixels, RGB, a row after the other; B, other bytes.
"""

import math
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from refine.network import Network, confidence
from refine.studio.tabs import Run
from refine.synthesis.tasks.explain import explain
from robust_models.attacks import frozen_eval
from robust_models.errors import UserError
from robust_models.images import to_float
from robust_models.runtime.config import as_json

MOST_WAITING = 16  # runs
_MOST_UNREAD = 4 << 20  # bytes of frames; then the oldest ones are left out, as the browser lags


@dataclass(frozen=True, eq=False)
class Message:
    """What is sent to the page; a frame may be left out, if others follow it."""

    content: bytes
    is_frame: bool = False


def json_message(**content: Any) -> Message:
    """As JSON."""
    return _message(b"J", as_json(content).encode())


def bytes_message(content: bytes) -> Message:
    """As bytes."""
    return _message(b"B", content)


def frame_message(x_u8: Tensor, step: int, objective: float, confidence: float, seconds: float) -> Message:
    """x_u8 [3,H,W] on the CPU, as a frame."""
    height, width = x_u8.shape[1:]
    head = struct.pack("<IfffHH", step, objective, confidence, seconds, height, width)
    return Message(_message(b"F", head + pixels_of(x_u8)).content, is_frame=True)


def pixels_of(x_u8: Tensor) -> bytes:
    """x_u8 [3,H,W] -> RGB, a row after the other."""
    return x_u8.permute(1, 2, 0).contiguous().numpy().tobytes()


def _message(kind: bytes, content: bytes) -> Message:
    return Message(struct.pack("<I", 1 + len(content)) + kind + content)


Work = Callable[[], Generator[Message]]


@dataclass(eq=False)
class Job:
    """Work in the queue or under way. `is_gone` tells before each step whether anybody still waits for it."""

    work: Work
    is_gone: Callable[[], bool]
    changed: threading.Condition
    unread: deque[Message] = field(default_factory=deque)
    unread_bytes: int = 0
    ahead: int = 0  # runs before this one
    finished: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False

    def put(self, message: Message) -> None:
        """Adds a message for the reader; the oldest frames give way where too much is unread."""
        with self.changed:
            self.unread.append(message)
            self.unread_bytes += len(message.content)
            while self.unread_bytes > _MOST_UNREAD and sum(one.is_frame for one in self.unread) > 1:
                oldest = next(one for one in self.unread if one.is_frame)
                self.unread.remove(oldest)
                self.unread_bytes -= len(oldest.content)
            self.changed.notify_all()

    def take(self, seconds: float) -> tuple[list[Message], int, bool]:
        """The messages that are there, after waiting for some; how many runs are ahead; and whether all is said."""
        with self.changed:
            if not self.unread and not self.finished.is_set():
                self.changed.wait(seconds)
            messages = list(self.unread)
            self.unread.clear()
            self.unread_bytes = 0
            return messages, self.ahead, self.finished.is_set()

    def cancel(self) -> None:
        """The worker takes no further step."""
        self.is_cancelled = True

    @property
    def is_wanted(self) -> bool:
        """Whether to go on."""
        return not (self.is_cancelled or self.is_gone())


class Worker:
    """The thread that computes. Its queue is first come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._is_closed = False
        self.steps = 0  # messages computed so far
        threading.Thread(target=self._serve, name="studio", daemon=True).start()

    def submit(self, work: Work, is_gone: Callable[[], bool]) -> Job:
        """Puts the work at the end of the queue. UserError where that is too long."""
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{len(self._waiting)} runs are waiting already; try again in a while")
            job = Job(work, is_gone, self._changed)
            self._waiting.append(job)
            self._count_ahead()
        return job

    def close(self) -> None:
        """Nothing further is computed."""
        with self._changed:
            self._is_closed = True
            for job in (*self._waiting, *([self._current] if self._current else [])):
                job.cancel()
            self._changed.notify_all()

    def _count_ahead(self) -> None:
        for i, job in enumerate(self._waiting):
            job.ahead = i + (self._current is not None)
        self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._current = None
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                self._current = self._waiting.popleft()
                self._current.ahead = 0
                self._count_ahead()
            self._work_on(self._current)
            with self._changed:
                self._current.finished.set()
                self._changed.notify_all()

    def _work_on(self, job: Job) -> None:
        try:
            with closing(job.work()) as messages:
                while job.is_wanted and (message := next(messages, None)) is not None:
                    self.steps += 1
                    job.put(message)
        except UserError as error:
            job.put(json_message(error=str(error)))
        except Exception as error:  # the page is told, and others are served
            traceback.print_exc(file=sys.stderr)
            why = (str(error).splitlines() or ["no reason given"])[0]
            job.put(json_message(error=f"the run failed: {type(error).__name__}: {why}"))


class _Watched:
    """The classifier's last logits, taken where it computes them anyway."""

    logits: Tensor

    def __call__(self, module: Any, inputs: Any, output: Tensor) -> None:
        self.logits = output.detach()


@contextmanager
def _watching(network: Network) -> Iterator[_Watched]:
    seen = _Watched()
    handle = network.model.register_forward_hook(seen)
    try:
        yield seen
    finally:
        handle.remove()


def steps_of(run: Run, network: Network) -> Generator[Message]:
    """What the run is, then a frame for each of its iterates; UserError where the classifier gives no numbers."""
    ball, names = run.ball, network.class_names
    label = int(run.y)
    yield json_message(
        label=label,
        name=names[label],
        eps=ball.eps,
        step_size=ball.step_size,
        steps=ball.steps,
        norm=ball.norm,
    )
    started = time.perf_counter()
    with frozen_eval(network), _watching(network) as seen:
        for step, (x, objective) in enumerate(run.points()):
            x_u8 = run.stored(x)
            if objective is None:  # at the last one, whose gradient is not needed
                with torch.no_grad():
                    objective = run.objective(x)
            value, sure = float(objective[0]), float(confidence(seen.logits, run.y.to(seen.logits.device))[0])
            if not (math.isfinite(value) and math.isfinite(sure)):
                raise UserError(
                    f"step {step}: the classifier's outputs are not finite; start the studio with --precision fp32, or "
                    "look at the file with `bigroc models inspect`"
                )
            yield frame_message(x_u8[0].cpu(), step, value, sure, time.perf_counter() - started)
    yield json_message(done=True)


def explanation_of(x_u8: Tensor, y: Tensor, network: Network) -> Generator[Message]:
    """The gradient of class y [1] in x_u8 [1,3,H,W] as a frame, and all probabilities."""
    label = int(y)
    found = explain(network, to_float(x_u8), y)
    if not found.probs.isfinite().all():
        raise UserError("the classifier's outputs are not finite; start the studio with --precision fp32")
    yield json_message(label=label, name=network.class_names[label])
    yield frame_message(found.gradient_u8[0], 0, math.nan, float(found.probs[0, label]), 0.0)
    yield json_message(done=True, probs=[round(p, 6) for p in found.probs[0].tolist()])
