"""PyTorch's own files (.pt, .pth: the zip and the legacy stream) as plain containers and tensors, without running code.

The file is mapped, not read: tensors of a zip are views of the mapping (copy on write), so a declared size that exceeds
the file is an error before anything is allocated, and what nobody asks for is never read.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from robust_models.checkpoints.records import BrokenPickle, Rebuild, Record
from robust_models.checkpoints.unpickle import read_pickle
from robust_models.errors import UserError

MAX_PICKLE_BYTES = 64 << 20
MAX_ZIP_ENTRIES = 100_000
MAX_EXPANDED = 1_000_000  # elements of a tensor with stride 0, which is larger than its storage
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch.serialization

_DTYPES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8},
    **{"Byte": torch.uint8, "Untyped": torch.uint8, "Bool": torch.bool},
}
_DTYPES_BY_NAME = {str(dtype): dtype for dtype in _DTYPES.values()}

# What decoding hostile bytes may raise; each becomes one line.
_FAILURES = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError, RuntimeError)
_FAILURES += (MemoryError, NotImplementedError, struct.error, zipfile.BadZipFile, OSError)


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote to `path`: containers, numbers, text and CPU tensors; every other object is a Record.

    Raises UserError, one line, for a file that is broken, hostile or something else.
    """
    with _named_failures(path), path.open("rb") as file:
        if path.stat().st_size == 0:
            raise UserError(f"ckpt: {path} is empty, not a readable safetensors file or PyTorch file")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _refuse_other_kinds(mapped, path)
        return _read_zip(file, mapped, path) if mapped[:4] == b"PK\x03\x04" else _read_stream(mapped)


@contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _FAILURES as error:
        reason = ascii(" ".join(str(error).split())[:200])[1:-1]
        kind = "" if isinstance(error, BrokenPickle) else f"{type(error).__name__}: "
        raise UserError(f"ckpt: {path} is broken or cut short ({kind}{reason})") from error


def _refuse_other_kinds(mapped: mmap.mmap, path: Path) -> None:
    """A UserError that names what people save as .pt by mistake."""
    head = mapped[:1024]
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"ckpt: {path} is a git-lfs pointer, not the file itself; run `git lfs pull` where it came from"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"ckpt: {path} is an HTML page, not a readable safetensors file or PyTorch file; "
            "download it from a browser or with the site's own tool"
        )
    if head[257:262] == b"ustar":
        raise UserError(f"ckpt: {path} is a tar archive (torch 0.1 or older); save it again with a newer torch")
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise UserError(f"ckpt: {path} is not a readable safetensors file or PyTorch file (it starts {head[:8]!a})")


class _Storage:
    """Elements of the file as a flat tensor; None while only the sizes are of interest."""

    def __init__(self, dtype: torch.dtype, flat: Tensor | None) -> None:
        self.dtype, self.flat = dtype, flat


def _read_zip(file: BinaryIO, mapped: mmap.mmap, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        if len(archive.filelist) > MAX_ZIP_ENTRIES:
            raise BrokenPickle(f"more than {MAX_ZIP_ENTRIES:,} zip entries")
        entries = {info.filename: info for info in archive.filelist}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if any("/code/" in name or name.endswith("constants.pkl") for name in entries):
        raise UserError(f"ckpt: {path} is a TorchScript program, not tensors; save its state_dict() with torch.save")
    if not pickles:
        raise UserError(f"ckpt: {path} is a zip archive, but not one of torch.save (it has no data.pkl)")
    root = pickles[0].removesuffix("data.pkl")

    def located(name: str) -> tuple[int, int]:
        """Start and size [bytes] of a stored entry."""
        if (info := entries.get(name)) is None:
            raise BrokenPickle(f"no zip entry {name!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise BrokenPickle(f"zip entry {name!r} is compressed or encrypted; torch.save stores")
        magic, name_bytes, extra_bytes = struct.unpack("<4s22xHH", mapped[info.header_offset : info.header_offset + 30])
        start = info.header_offset + 30 + name_bytes + extra_bytes
        if magic != b"PK\x03\x04" or info.header_offset < 0 or start + info.file_size > len(mapped):
            raise BrokenPickle(f"zip entry {name!r} lies outside the file")
        return start, info.file_size

    if f"{root}byteorder" in entries:
        start, size = located(f"{root}byteorder")
        if mapped[start : start + size] != b"little":
            raise BrokenPickle("its tensors are not little-endian")
    storages: dict[tuple[str, torch.dtype], _Storage] = {}

    def persistent(pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid
        dtype = _dtype(storage_type)
        if kind != "storage" or not isinstance(key, str):
            raise BrokenPickle("a persistent id that is not a storage")
        if (key, dtype) not in storages:
            start, size = located(f"{root}data/{key}")
            storages[key, dtype] = _Storage(dtype, _flat(mapped, dtype, start, count, start + size))
        return storages[key, dtype]

    start, size = located(pickles[0])
    if size > MAX_PICKLE_BYTES:
        raise BrokenPickle(f"a pickle of {size:,} bytes")
    return read_pickle(io.BytesIO(mapped[start : start + size]), persistent=persistent, rebuild=_REBUILD)


def _read_stream(mapped: mmap.mmap) -> Any:
    """torch.save before 1.6: magic, protocol, system, the object, the storages' keys, then size and bytes of each.

    The object's tensors precede the sizes, so its pickle is read twice: for the storages' types, then in earnest.
    """

    def nothing(pid: Any) -> Any:
        raise BrokenPickle("a persistent id where none belongs")

    types: dict[str, torch.dtype] = {}

    def note(pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]
        _, storage_type, key, _, _, _ = pid
        types[str(key)] = _dtype(storage_type)
        return _Storage(types[str(key)], None)

    stream = cast(IO[bytes], mapped)  # it has what genops uses: read, readline, tell
    magic, protocol = [read_pickle(stream, persistent=nothing, rebuild={}) for _ in range(2)]
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise BrokenPickle("a pickle, but not one of torch.save")
    read_pickle(stream, persistent=nothing, rebuild={})
    object_start = mapped.tell()
    read_pickle(stream, persistent=note, rebuild=_REBUILD)
    keys = read_pickle(stream, persistent=nothing, rebuild={})
    start = mapped.tell()
    flats: dict[str, Tensor] = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", mapped[start : start + 8])
        flats[key] = _flat(mapped, types[key], start + 8, count, len(mapped))
        start += 8 + count * types[key].itemsize

    def persistent(pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]
        kind, storage_type, key, _, _, view = pid
        dtype, flat = _dtype(storage_type), flats[str(key)]
        if kind != "storage" or flat.dtype != dtype:
            raise BrokenPickle("a persistent id that is not a storage")
        if view is not None:
            _, offset, count = view
            flat = _strided(flat, offset, (count,), (1,))
        return _Storage(dtype, flat)

    mapped.seek(object_start)
    return read_pickle(stream, persistent=persistent, rebuild=_REBUILD)


def _dtype(storage_type: Any) -> torch.dtype:
    name = storage_type.name.rsplit(".", 1)[-1].removesuffix("Storage") if isinstance(storage_type, Record) else ""
    if name not in _DTYPES:
        raise BrokenPickle(f"storages of type {name[:40] or 'unknown'} are not read")
    return _DTYPES[name]


def _flat(mapped: mmap.mmap, dtype: torch.dtype, start: int, count: Any, end: int) -> Tensor:
    """`count` elements from byte `start` of the file, which must not pass byte `end`."""
    if type(count) is not int or count < 0 or start + count * dtype.itemsize > end:
        raise BrokenPickle(f"a storage declares {ascii(count)[:30]} elements, more than the file holds")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # a byte that is neither 0 nor 1 is undefined behaviour in kernels
        return torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=start) != 0
    if start % dtype.itemsize:  # the legacy stream does not align
        data = torch.frombuffer(mapped, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
        return data.clone().view(dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)


def _strided(flat: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise BrokenPickle("a tensor with an impossible shape")
    elements, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        elements *= n
        last += (n - 1) * step
    if offset > len(flat) or (elements and last >= len(flat)) or elements > max(len(flat), MAX_EXPANDED):
        raise BrokenPickle(f"a tensor of shape {list(size)} is larger than its storage of {len(flat)} elements")
    return torch.as_strided(flat, size, stride, offset)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise BrokenPickle("a tensor without a storage")
    return storage if storage.flat is None else _strided(storage.flat, offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    """A tensor of a type that has no storage class of its own, in an untyped storage (bytes)."""
    known = _DTYPES_BY_NAME.get(dtype.name) if isinstance(dtype, Record) else None
    if known is None or not isinstance(storage, _Storage):
        return Record("torch._utils._rebuild_tensor_v3", (dtype,))
    return storage if storage.flat is None else _strided(storage.flat.clone().view(known), offset, size, stride)


def _from_type(function: Any, tensor_type: Any, args: Any, state: Any) -> Any:
    """A subclass of Tensor, or a tensor with attributes: the tensor in it."""
    name = function.name if isinstance(function, Record) else ""
    if name.startswith("torch._utils._rebuild_tensor") and name in _REBUILD:
        return _REBUILD[name](*args)
    return Record("torch._tensor._rebuild_from_type_v2", (tensor_type, args, state))


_REBUILD: Rebuild = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
