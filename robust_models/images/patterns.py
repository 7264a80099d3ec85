"""Many files by one name: `shards/{000..009}.tar`, `{a,b}.tar`, `shards/*.tar`."""

import hashlib
import os
import re
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from robust_models.errors import UserError
from robust_models.images.folder import sorted_naturally

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def is_pattern(path: Path) -> bool:
    return bool(_BRACES.search(str(path))) or has_magic(str(path))


def expand(path: Path) -> list[Path]:
    """The files that a pattern names, in its order (matches of * in natural order). UserError where one is missing."""
    found: list[Path] = []
    for name in _without_braces(str(path)):
        matches = sorted_naturally(iter(glob(name))) if has_magic(name) else [name]
        found += map(Path, matches)
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing ({len(missing)} of {len(found)} are)")
    if not found:
        raise UserError(f"{path}: no file matches")
    return found


def _without_braces(name: str) -> Iterator[str]:
    """{000..009} counts with its zeros, {a,b} lists; several multiply."""
    braces = _BRACES.search(name)
    if not braces:
        yield name
        return
    if span := _RANGE.fullmatch(braces[1]):
        first, last = span.groups()
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _without_braces(name[: braces.start()] + choice + name[braces.end() :])


def fingerprint(path: Path) -> str:
    """Names, sizes and times of change of the file, of all files below, or of those that a pattern names.

    So changed content is noticed without reading it. The digests are summed: their order is free, and memory does not
    grow with the number of files.
    """
    total = 0
    for file in _files(path):
        status = file.stat()
        digest = hashlib.sha256(
            f"{os.path.relpath(file, path)}\n{status.st_size}\n{status.st_mtime_ns}".encode()
        ).digest()
        total += int.from_bytes(digest[:16])
    return f"{total % 2**64:016x}"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for folder, _, names in os.walk(path):
            yield from (Path(folder, name) for name in names)
    elif path.exists():
        yield path
    else:
        yield from expand(path)
