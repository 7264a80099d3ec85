"""The zip that torch.save writes since PyTorch 1.6: entries that are stored, found by the archive's directory.

`zipfile` makes an object of each of a directory's entries before their number can be refused.
"""

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from robust_models.checkpoints.torch_format.records import BrokenPickle
from robust_models.checkpoints.torch_format.tensors import (
    FINISH,
    REBUILD,
    Storage,
    StorageInFile,
    checked_count,
    dtype_of,
    empty_bytes,
    fill,
)
from robust_models.checkpoints.torch_format.unpickle import read_pickle
from robust_models.errors import UserError

MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 32 << 20
MAX_COMMENT_BYTES = 65_535

# APPNOTE.TXT 4.3: the directory's end, its 64-bit locator and end, an entry of the directory, an entry's own header.
_END = struct.Struct("<4s4H2IH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_HEADER = struct.Struct("<4s5H3I2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # the value is in a 64-bit field


@dataclass(frozen=True)
class Entry:
    """A file in the archive."""

    offset: int  # of its header
    size: int  # in the file
    stored: bool  # neither compressed nor encrypted


def read_zip(file: BinaryIO, path: Path, *, lazy: bool) -> Any:
    """What torch.save wrote. BrokenPickle or UserError where the archive is broken or of another kind.

    lazy: tensors are left in the file, each as its StoredTensor.
    """
    entries = read_directory(file)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if any("/code/" in name or name.endswith("constants.pkl") for name in entries):
        raise UserError(f"ckpt: {path} is a TorchScript program, not tensors; save its state_dict() with torch.save")
    if not pickles:
        raise UserError(f"ckpt: {path} is a zip archive, but not one of torch.save (it has no data.pkl)")
    root = pickles[0].removesuffix("data.pkl")

    def placed(name: str) -> tuple[int, int]:
        if name not in entries:
            raise BrokenPickle(f"no zip entry {name!r}")
        return _start(file, name, entries[name]), entries[name].size

    def content(name: str) -> Tensor:
        start, size = placed(name)
        file.seek(start)
        raw = empty_bytes(size)
        fill(raw, file)
        return raw

    if f"{root}byteorder" in entries and content(f"{root}byteorder").numpy().tobytes() != b"little":
        raise BrokenPickle("its tensors are not little-endian")
    raws: dict[str, Tensor] = {}
    storages: dict[tuple[str, Any], Storage] = {}

    def persistent(pid: Any) -> Storage | StorageInFile:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[2], str)):
            raise BrokenPickle("a persistent id that is not a storage")
        _, storage_type, key, _, count = pid
        dtype = dtype_of(storage_type)
        if lazy:
            return StorageInFile(path, *placed(f"{root}data/{key}"), dtype)
        if key not in raws:
            raws[key] = content(f"{root}data/{key}")
        size = checked_count(count, dtype, len(raws[key]))
        if (key, dtype) not in storages:
            storages[key, dtype] = Storage(dtype, raws[key][:size])
            storages[key, dtype].make_valid()
        return storages[key, dtype]

    pickled = io.BytesIO(content(pickles[0]).numpy().tobytes())
    return read_pickle(pickled, persistent=persistent, rebuild=REBUILD, finish=FINISH)


def read_directory(file: BinaryIO) -> dict[str, Entry]:
    """The entries by name. BrokenPickle where they are too many, share bytes or names, or lie outside the file."""
    size = file.seek(0, os.SEEK_END)
    tail = _at(file, max(0, size - _END.size - MAX_COMMENT_BYTES), size)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        raise BrokenPickle("the zip directory is missing")
    end = size - len(tail) + found
    _, *_, count, directory_size, start, _ = _END.unpack_from(tail, found)
    if _FULL32 in (directory_size, start) or count == _FULL16:
        end, count, directory_size, start = _end64(file, end)
    if count > MAX_ENTRIES or directory_size > MAX_DIRECTORY_BYTES:
        raise BrokenPickle(f"more than {MAX_ENTRIES:,} zip entries")
    if start + directory_size > end:
        raise BrokenPickle("the zip directory lies outside the file")
    directory = _at(file, start, start + directory_size)
    entries: dict[str, Entry] = {}
    position = 0
    for _ in range(count):
        name, entry, position = _entry(directory, position)
        if name in entries:
            raise BrokenPickle(f"two zip entries are called {name!r}")
        entries[name] = entry
    end_of_last = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset < end_of_last or entry.offset + _HEADER.size + entry.size > start:
            raise BrokenPickle("zip entries overlap or lie outside the file")
        end_of_last = entry.offset + _HEADER.size + entry.size
    return entries


def _end64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """Where the 64-bit end of the directory lies, the entries, and the directory's size and start."""
    locator = _at(file, end - _LOCATOR64.size, end)
    magic, _, position, _ = _LOCATOR64.unpack(locator)
    if magic != b"PK\x06\x07":
        raise BrokenPickle("the zip directory is missing its 64-bit part")
    magic, *_, count, size, start = _END64.unpack(_at(file, position, position + _END64.size))
    if magic != b"PK\x06\x06":
        raise BrokenPickle("the zip directory is missing its 64-bit part")
    return position, count, size, start


def _entry(directory: bytes, position: int) -> tuple[str, Entry, int]:
    """Name, entry and the next one's position in the directory."""
    fields = _ENTRY.unpack_from(directory, position)
    magic, flags, method, packed, size, name_bytes, extra_bytes, comment_bytes, offset = (
        fields[i] for i in (0, 3, 4, 8, 9, 10, 11, 12, 16)
    )
    name_start = position + _ENTRY.size
    extra_start = name_start + name_bytes
    following = extra_start + extra_bytes + comment_bytes
    if magic != b"PK\x01\x02" or following > len(directory):
        raise BrokenPickle("the zip directory is broken")
    name = directory[name_start:extra_start].decode("utf-8")
    wide = iter(_wide(directory[extra_start : extra_start + extra_bytes]))
    size, packed, offset = (next(wide, value) if value == _FULL32 else value for value in (size, packed, offset))
    return name, Entry(offset, packed, stored=method == 0 and not flags & 1 and packed == size), following


def _wide(extra: bytes) -> tuple[int, ...]:
    """The 64-bit numbers of an entry whose own fields are too small for them."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            return struct.unpack_from(f"<{size // 8}Q", extra, 4)
        extra = extra[4 + size :]
    return ()


def _start(file: BinaryIO, name: str, entry: Entry) -> int:
    """Where the bytes of a stored entry begin in the file."""
    if not entry.stored:
        raise BrokenPickle(f"zip entry {name!r} is compressed or encrypted; torch.save stores")
    header = _HEADER.unpack(_at(file, entry.offset, entry.offset + _HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise BrokenPickle(f"zip entry {name!r} lies outside the file")
    start = file.seek(sum(header[-2:]), os.SEEK_CUR)
    if start + entry.size > file.seek(0, os.SEEK_END):
        raise BrokenPickle(f"zip entry {name!r} lies outside the file")
    return start


def _at(file: BinaryIO, start: int, end: int) -> bytes:
    """Those bytes of the file. BrokenPickle where it has fewer."""
    if start < 0:
        raise BrokenPickle("the zip directory lies outside the file")
    file.seek(start)
    data = file.read(end - start)
    if len(data) != end - start:
        raise BrokenPickle("the zip directory lies outside the file")
    return data
