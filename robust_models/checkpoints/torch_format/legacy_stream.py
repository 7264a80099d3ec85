"""What torch.save wrote before PyTorch 1.6: pickles one after the other, then the bytes of the storages."""

import io
import os
import struct
from typing import Any, BinaryIO

from robust_models.checkpoints.torch_format.records import BrokenPickle
from robust_models.checkpoints.torch_format.tensors import (
    FINISH,
    REBUILD,
    Storage,
    checked_count,
    dtype_of,
    empty_bytes,
    fill,
)
from robust_models.checkpoints.torch_format.unpickle import read_pickle

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch.serialization


def read_stream(file: BinaryIO) -> Any:
    """Magic, protocol, system, the object, the storages' keys, then the count and bytes of each storage.

    A file of pickle.dump, without the magic, is its first object. BrokenPickle where the file is broken.
    """
    rebuild = {**REBUILD, "torch.storage._load_from_bytes": _nested}
    first = read_pickle(file, persistent=_nothing, rebuild=rebuild, finish=FINISH)
    if not isinstance(first, dict) and not (type(first) is int and first == LEGACY_MAGIC):
        raise BrokenPickle("a pickle, but not one of torch.save")
    return first if isinstance(first, dict) else _read_body(file)


def _read_body(file: BinaryIO) -> Any:
    if read_pickle(file, persistent=_nothing, rebuild={}) != LEGACY_PROTOCOL:
        raise BrokenPickle("a pickle, but not one of torch.save")
    read_pickle(file, persistent=_nothing, rebuild={})
    start = file.tell()
    available = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        """The object's tensors precede their bytes: memory for them now, which costs nothing, and the bytes later."""
        nonlocal available
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        if not (isinstance(pid, tuple) and len(pid) == 6 and pid[0] == "storage" and isinstance(pid[2], str)):
            raise BrokenPickle("a persistent id that is not a storage")
        _, storage_type, key, _, count, view = pid
        dtype = dtype_of(storage_type)
        if key not in storages:
            size = checked_count(count, dtype, available)
            available -= size
            storages[key] = Storage(dtype, empty_bytes(size))
        if storages[key].dtype != dtype:
            raise BrokenPickle("a persistent id that is not a storage")
        return storages[key] if view is None else _part(storages[key], view)

    content = read_pickle(file, persistent=persistent, rebuild=REBUILD, finish=FINISH)
    keys = read_pickle(file, persistent=_nothing, rebuild={})
    if not isinstance(keys, list) or {*storages} != {key for key in keys if isinstance(key, str)}:
        raise BrokenPickle("the list of storages does not fit")
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(storage.flat):
            raise BrokenPickle(f"a storage declares {count} elements, {len(storage.flat)} in its tensors")
        fill(storage.raw, file)
        storage.make_valid()
    return content


def _part(storage: Storage, view: Any) -> Storage:
    """A storage that is a run of elements of another."""
    if not (isinstance(view, tuple) and len(view) == 3):
        raise BrokenPickle("a persistent id that is not a storage")
    _, offset, count = view
    return storage.part(offset, count)


def _nested(data: Any) -> Storage:
    """How a storage is pickled by others than torch.save: as bytes that torch.save wrote."""
    content = read_stream(io.BytesIO(data))
    if not isinstance(content, Storage):
        raise BrokenPickle("a storage that is something else")
    return content


def _nothing(pid: Any) -> Any:
    raise BrokenPickle("a persistent id where none belongs")
