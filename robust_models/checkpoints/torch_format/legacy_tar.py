"""What torch.save wrote in PyTorch 0.1: a tar of `storages`, `tensors` and `pickle`, which names the tensors.

The layout is that of torch.serialization._legacy_load. `tarfile` is not used: a hostile header can hold it forever.
"""

import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from robust_models.checkpoints.torch_format.records import BrokenPickle
from robust_models.checkpoints.torch_format.tensors import (
    FINISH,
    REBUILD,
    Storage,
    checked_count,
    dtype_of,
    empty_bytes,
    fill,
    strided,
)
from robust_models.checkpoints.torch_format.unpickle import read_pickle
from robust_models.errors import UserError

MAX_MEMBERS = 1_000
MAX_STORAGES = 100_000
MAX_DIMENSIONS = 16
_BLOCK = 512


def is_tar(head: bytes) -> bool:
    """By the first bytes of a file."""
    return head[257:262] == b"ustar"


def read_tar(file: BinaryIO, path: Path) -> Any:
    """What torch.save wrote. BrokenPickle where it is broken, UserError where the tar holds other things."""
    members = _members(file)
    if not {"storages", "tensors", "pickle"} <= {*members}:
        raise UserError(f"ckpt: {path} is a tar archive, but not one of torch.save (it has no storages and tensors)")
    file.seek(members["storages"])
    storages = _storages(file)
    file.seek(members["tensors"])
    objects: dict[int, Any] = {**storages, **_tensors(file, storages)}

    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple) and pid:
            return pid[0]  # a module's class, its file and source
        if not (isinstance(pid, str) and re.fullmatch(r"\d{1,20}", pid) and int(pid) in objects):
            raise BrokenPickle("a persistent id of no tensor")
        return objects[int(pid)]

    file.seek(members["pickle"])
    return read_pickle(file, persistent=persistent, rebuild=REBUILD, finish=FINISH)


def _members(file: BinaryIO) -> dict[str, int]:
    """Where the content of each plain member starts, by name."""
    total = file.seek(0, os.SEEK_END)
    starts: dict[str, int] = {}
    position = 0
    for _ in range(MAX_MEMBERS):
        file.seek(position)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK or not header[0]:
            return starts
        name = header[:100].split(b"\0")[0].decode("utf-8")
        size = header[124:136].strip(b"\0 ")
        if not is_tar(header) or not re.fullmatch(rb"[0-7]{1,11}", size):
            raise BrokenPickle(f"tar member {name[:40]!r} has a broken header")
        if position + _BLOCK + int(size, 8) > total:
            raise BrokenPickle(f"tar member {name[:40]!r} is larger than the file")
        if header[156:157] in b"0\0":  # a plain file, not a link or a folder
            starts.setdefault(name, position + _BLOCK)
        position += _BLOCK + -(-int(size, 8) // _BLOCK) * _BLOCK
    raise BrokenPickle(f"more than {MAX_MEMBERS} tar members")


def _storages(file: BinaryIO) -> dict[int, Storage]:
    """Each: a pickle (key, location, type), the count, the elements; then a pickle of storages within others."""
    start = file.tell()
    total = file.seek(0, os.SEEK_END)
    file.seek(start)
    storages: dict[int, Storage] = {}
    for _ in range(_count(file)):
        key, _, storage_type = _triple(file)
        dtype = dtype_of(storage_type)
        (count,) = struct.unpack("<q", file.read(8))
        raw = empty_bytes(checked_count(count, dtype, total - file.tell()))
        fill(raw, file)
        storage = storages[_key(key)] = Storage(dtype, raw)
        storage.make_valid()
    views = read_pickle(file, persistent=_nothing, rebuild={})
    for view in views if isinstance(views, list) else ():
        if not (isinstance(view, tuple) and len(view) == 4 and _key(view[1]) in storages):
            raise BrokenPickle("a storage within one that is not there")
        key, root, offset, count = view
        storages[_key(key)] = storages[root].part(offset, count)
    return storages


def _tensors(file: BinaryIO, storages: dict[int, Storage]) -> dict[int, Tensor]:
    """Each: a pickle (key, storage's key, type), then dimensions, four bytes of nothing, sizes, strides, offset."""
    tensors: dict[int, Tensor] = {}
    for _ in range(_count(file)):
        key, storage, _ = _triple(file)
        (dimensions,) = struct.unpack("<i4x", file.read(8))
        if not 0 <= dimensions <= MAX_DIMENSIONS or not (storage is None or _key(storage) in storages):
            raise BrokenPickle("a tensor with an impossible shape or without a storage")
        *numbers, offset = struct.unpack(f"<{2 * dimensions + 1}q", file.read(8 * (2 * dimensions + 1)))
        if storage is not None:
            sizes, strides = numbers[:dimensions], numbers[dimensions:]
            tensors[_key(key)] = strided(storages[storage].flat, offset, sizes, strides)
    return tensors


def _count(file: BinaryIO) -> int:
    count = read_pickle(file, persistent=_nothing, rebuild={})
    if type(count) is not int or not 0 <= count <= MAX_STORAGES:
        raise BrokenPickle(f"not a number of storages or tensors up to {MAX_STORAGES:,}")
    return count


def _triple(file: BinaryIO) -> tuple[Any, Any, Any]:
    value = read_pickle(file, persistent=_nothing, rebuild={})
    if not (isinstance(value, tuple) and len(value) == 3):
        raise BrokenPickle("not the key and type of a storage or tensor")
    return value


def _key(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise BrokenPickle("a key that is not a number")
    return value


def _nothing(pid: Any) -> Any:
    raise BrokenPickle("a persistent id where none belongs")
