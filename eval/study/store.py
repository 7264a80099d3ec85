"""A study's folder: finished results under the hash of all they depend on, and who is at work on what.

OUT/cells/KEY.json        a finished cell; written last, so that where it stands the cell is done
          KEY.npz         its arrays
          KEY.error.json  why it failed in the last run that tried it
          KEY/            where it is refined; kept with --keep-images
    classifiers/, references/, trained/   the same for the other kinds of jobs
    images/               the sets that a limit draws
    claims/KEY.lock       held by the process that works on KEY; study.lock by every command that works here
    runs.jsonl            a line for each job that ended
"""

import fcntl
import hashlib
import json
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_models.errors import UserError
from robust_models.runtime.files import is_no_room, locked, make_parent, reporting_no_room, sweep_partials, write_json

LOG = "runs.jsonl"


def key_of(depends: dict[str, Any]) -> str:
    """sha256 of JSON-ready values, whatever their order."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """Where the result of one job goes."""

    out: Path
    kind: str  # "cells", "classifiers", "references", "trained"
    key: str

    @property
    def done(self) -> Path:
        """File of the result (JSON): the job is done where it exists."""
        return self._path(".json")

    @property
    def arrays(self) -> Path:
        """File of what is too large for the result: features, images."""
        return self._path(".npz")

    @property
    def failed(self) -> Path:
        """File of the error of a job that failed."""
        return self._path(".error.json")

    @property
    def folder(self) -> Path:
        """For what a job keeps while it works, or as its result."""
        return self._path("")

    @property
    def is_finished(self) -> bool:
        """Done, or failed in this run: nobody has to work on it any more."""
        return self.done.exists() or self.failed.exists()

    def read(self) -> dict[str, Any] | None:
        """What was found; None where the job is not done."""
        return _read(self.done)

    def error(self) -> str | None:
        """The line of a failed job."""
        found = None if self.done.exists() else _read(self.failed)
        return None if found is None else found["error"]

    def write(self, found: dict[str, Any], seconds: float) -> None:
        """Stores the result of a job that took so many seconds; it is done from then on."""
        write_json(self.done, found)
        self.failed.unlink(missing_ok=True)
        self._log("done", seconds)

    def write_error(self, error: Exception, seconds: float) -> str:
        """Keeps an error for the report, with its traceback, and gives its one line."""
        line = one_line(error)
        write_json(self.failed, {"error": line, "traceback": traceback.format_exception(error)})
        self._log("failed", seconds)
        return line

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether this process alone works on the job, for as long as the block lasts.

        The kernel lets go of the lock when its process ends, however it ends: no claim outlives a kill.
        """
        path = self.out / "claims" / f"{self.key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                mine = stack.enter_context(locked(path))
            except OSError as error:
                raise _no_locks(path, error) from error
            yield mine

    def _log(self, status: str, seconds: float) -> None:
        row = {
            "kind": self.kind,
            "key": self.key,
            "status": status,
            "seconds": round(seconds, 3),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with reporting_no_room(self.out / LOG), (self.out / LOG).open("a") as log:
            log.write(json.dumps(row) + "\n")  # one write, appended as a whole

    def _path(self, suffix: str) -> Path:
        return self.out / self.kind / f"{self.key}{suffix}"


def one_line(error: Exception) -> str:
    """An error for a table: a user's mistake as its message, others with their type."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


@contextmanager
def at_work(out: Path) -> Iterator[None]:
    """This command is one of those that work on the study in `out`, for as long as the block lasts.

    The only one sweeps what killed ones left half written: whoever writes in `out` is inside this block. UserError
    where the folder cannot be made or written.
    """
    path = out / "claims" / "study.lock"
    make_parent(path)
    with ExitStack() as stack:
        try:
            with reporting_no_room(path):
                file = stack.enter_context(path.open("a"))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        try:
            if _only_one(file.fileno()):
                for folder in [out, *(place for place in out.glob("*") if place.is_dir()), *out.glob("classifiers/*/")]:
                    sweep_partials(folder)
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        except OSError as error:
            raise _no_locks(path, error) from error
        yield


def _only_one(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _no_locks(path: Path, error: OSError) -> UserError:
    if is_no_room(error):
        return UserError(f"{path}: could not be written ({error.strerror}); make room and run the same command again")
    return UserError(f"out: {path} cannot be locked ({error.strerror}); choose a place on another disk")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
