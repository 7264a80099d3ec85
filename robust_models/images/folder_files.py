"""Files on disk as image sets use them: which of them lie below a folder, and their bytes, from regular files only."""

import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from robust_models.errors import UserError
from robust_models.images.image_set import Names
from robust_models.images.pixels import max_bytes, too_large

_SYSTEM_FILES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"})
_KINDS = {
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISDIR: "a folder",
}


class FoundFiles(NamedTuple):
    """What lies below a folder."""

    files: list[str]  # relative paths, in natural order
    passed_over: Counter[str]  # suffix -> number of the other files

    def note(self, root: Path) -> str | None:
        """One line that counts what was passed over; None where that is nothing."""
        if not self.passed_over:
            return None
        kinds = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.passed_over.most_common(10)]
        more = ", ..." if len(self.passed_over) > len(kinds) else ""
        return f"{root}: passed over {', '.join(kinds)}{more}; {len(self.files):,} files are read"


def find_files(root: Path, suffixes: frozenset[str]) -> FoundFiles:
    """The files below `root` with one of `suffixes` (in small letters), and a count of all others."""
    found, passed_over = [], Counter[str]()
    for file in files_below(root):
        suffix = os.path.splitext(file)[1].lower()
        if suffix in suffixes:
            found.append(file)
        else:
            passed_over[suffix] += 1
    return FoundFiles(sorted_naturally(found), passed_over)


def files_below(root: Path) -> Iterator[str]:
    """Relative paths of all files, in no order.

    Links to files and folders are followed, except where they lead back to a folder above. Hidden files and folders
    (.ipynb_checkpoints, ._a.png) and those of operating systems (Thumbs.db, __MACOSX) are left out without a word.
    UserError where a folder cannot be read.
    """
    # Each with the identities of the folders above, itself included.
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(root),))]
    while folders:
        below, above = folders.pop()
        for entry in _entries(os.path.join(root, below)):
            if not _is_folder(entry):
                yield below + entry.name
            elif (identity := _identity(entry.path)) not in above:
                folders.append((f"{below}{entry.name}/", (*above, identity)))


def read_file(file: str | Path) -> bytes:
    """The bytes of a regular file, links followed.

    UserError for anything else (a FIFO would wait for ever, a device never ends), for a file that cannot be read, and
    for one of more than max_bytes().
    """
    try:
        check_regular(file)
        # Non-blocking: what it is may have changed since.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes():
                raise UserError(too_large(f"{file}: {size:,} bytes", size))
            return stream.read(size)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def check_regular(file: str | Path) -> None:
    """UserError unless `file` is, or links to, a regular file."""
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "no regular file")
        link = f"a link to {kind}" if os.path.islink(file) else kind
        raise UserError(f"{file}: {link}; only regular files are read")


def sorted_naturally(names: Iterable[str]) -> list[str]:
    """2.png before 10.png."""
    return sorted(sorted(names), key=_natural_key)


def _natural_key(name: str) -> str:
    """Every number as the count of its digits and then the digits, below all text."""
    return re.sub(r"0*([0-9]+)", lambda number: f"\0{len(number[1]):04d}{number[1]}", name)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_FILES:
                    yield entry
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


class Packed(Names):
    """Given names in one buffer: a list of as many strings would take several times their length."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.text, self.ends = bytearray(), array("Q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self.text += name.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends)

    def _name(self, i: int) -> str:
        start = self.ends[i - 1] if i else 0
        return self.text[start : self.ends[i]].decode("utf-8", "surrogateescape")


class Stems(Names):
    """File names without their suffixes."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def _name(self, i: int) -> str:
        return stem(self.files[i])


def stem(file: str) -> str:
    """ "cat/1.old.png" -> "cat/1.old"."""
    return os.path.splitext(file)[0]  # a Path would keep every name in the interpreter's table
