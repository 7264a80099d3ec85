"""Files appear whole, written beside their place, synced, renamed; and one process at a time writes an output."""

import errno
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from robust_models.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows, where two writers are not held apart
    fcntl = None

PRETRAINED = Path(__file__).parent.parent / "pretrained"  # what comes with the package: classifiers, seeds, image sets
BUNDLED = "bundled:"

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # disk full, quota used up, file system's limit

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_held: set[int] = set()  # descriptors of locks


def located(path: Path | str) -> Path:
    """Where a path leads: bundled:NAME lies in the package. UserError where NAME does not."""
    text = str(path)
    if not text.startswith(BUNDLED):
        return Path(path)
    name = text.removeprefix(BUNDLED)
    file = PRETRAINED / (name if name.endswith(".npz") else f"{name}.npz")
    if not file.is_file():
        there = ", ".join(file.name for file in sorted(PRETRAINED.glob("*.npz")))
        raise UserError(f"no bundled file {file.name}; there are {there}")
    return file


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it becomes `path`, on error it is removed.

    UserError where there is no room or no permission, and where a folder, a device or a pipe is there. A link is
    replaced; what it leads to stays.
    """
    partial = _partial_of(path)
    try:
        with reporting_no_room(path):
            yield partial
            partial.chmod(0o666 & ~_umask())  # mkstemp, and some writers, make it private
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """UserError where whole_file could not write: to be asked before long work. Makes nothing."""
    if path.parent.exists():
        _partial_of(path).unlink()
        return
    above = next(one for one in path.absolute().parents if one.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"{path}: cannot be written (no folder can be made in {above}); choose another place")


def _partial_of(path: Path) -> Path:
    """A new empty file beside `path`."""
    _check_kind(path, "file", path.is_file())
    make_parent(path)
    try:
        with reporting_no_room(path):
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    os.close(handle)
    return Path(name)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; on success it becomes `path`, on error it is removed.

    UserError where there is no room or no permission, and where something other than an empty folder is there: what is
    in it may be anybody's.
    """
    _check_kind(path, "folder", path.is_dir() and not path.is_symlink())
    if path.exists() and (found := next(path.iterdir(), None)) is not None:
        raise UserError(
            f"{path}: exists and is not empty ({found.name}), and is not replaced; move it away or name another place"
        )
    make_parent(path)
    with reporting_no_room(path):
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    partial.chmod(0o777 & ~_umask())
    try:
        with reporting_no_room(path):
            yield partial
            for file in partial.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    file.chmod(0o666 & ~_umask())  # some writers make it private
            partial.rename(path)  # OSError where files came into it meanwhile: an empty folder alone is replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def exclusive(path: Path, field: str = "out") -> Iterator[None]:
    """Keeps every other process from writing the output `path`, a file or a folder, for as long as the block lasts.

    UserError where another process is writing it. The lock is .NAME.lock beside it, which is removed in the end; the
    kernel lets go of it when its process ends, however it ends. File systems without locks go unprotected.
    """
    make_parent(path)
    lock = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        try:
            with reporting_no_room(path):
                alone = stack.enter_context(locked(lock))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            alone = True
        if not alone:
            raise UserError(
                f"{field}: {path} is being written by another process ({_holder(lock)}); wait until it ends, or choose "
                f"another --{field}"
            )
        yield


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the lock file `path`, for as long as the block lasts.

    OSError where the file system has no locks. Children that are forked meanwhile do not hold it.
    """
    handle = _lock(path)
    if handle is None:
        yield False
        return
    _held.add(handle)
    try:
        with suppress(OSError):  # on a full disk it stays nameless
            os.truncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {platform.node()}\n".encode())
        yield True
    finally:
        with suppress(OSError):
            path.unlink()
        _held.discard(handle)
        os.close(handle)


def _lock(path: Path) -> int | None:
    """A descriptor of the locked file; None where another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # its holder has removed the file meanwhile: a lock on it keeps nobody off


def _holder(lock: Path) -> str:
    try:
        return f"process {lock.read_text().strip()}"
    except OSError:
        return "just ended"


def _let_go() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def sweep_partials(folder: Path, name: str | None = None) -> None:
    """Removes what killed writers of folder/name left half written (None: of all that lies in the folder).

    Only for the one process that writes there: see exclusive().
    """
    for partial in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def reporting_no_room(path: Path) -> Iterator[None]:
    """Inside, an OSError of a full disk becomes one line (UserError) that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"{path}: could not be written ({os.strerror(error.errno)}); what was whole before is still valid: "
            "make room and run the same command again"
        ) from error


def is_no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__
    return False


def check_replaces(path: Path, is_of_kind: Callable[[Path], bool], kind: str) -> None:
    """UserError where a file stands at `path` that is no `kind`: a file is replaced only by one of its kind."""
    if path.is_file() and path.stat().st_size and not is_of_kind(path):
        raise UserError(f"{path}: exists, is no {kind} and is not replaced; name another place")


def _check_kind(path: Path, kind: str, is_of_kind: bool) -> None:
    if path.exists() and not is_of_kind:
        raise UserError(f"{path}: is no {kind} and is not replaced; name another place")


def make_parent(path: Path) -> None:
    """Makes the folder that `path` is to lie in. UserError where it cannot be made or written."""
    try:
        with reporting_no_room(path):  # a folder, too, needs a block
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}: {error.filename}); choose another place"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission in {path.parent}); choose another place")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes; of a folder's file names and digests, sorted."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\n{sha256_of(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """The JSON-ready value in a file, which appears whole. UserError where there is no room."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
