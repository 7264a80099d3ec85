"""Where the tensors of a torch.save zip lie in the file; none of them is read, and no code in the file is run."""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robust_models.errors import UserError
from robust_models.images.arrays import AtOffset, Rows

_MAX_PICKLE_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: length of the name, length of the extra field
_STORAGES = {"Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"}
_STORAGES |= {"Half": "f2", "Float": "f4", "Double": "f8", "Untyped": "u1"}
_UINT16 = "torch.uint16"  # has no storage class of its own
_BROKEN = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError, OSError)
_BROKEN += (RuntimeError, struct.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Place:
    """A tensor in the file."""

    path: Path
    start: int  # byte of its first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: np.dtype

    def rows(self) -> Rows:
        """Reads along the first axis. UserError where a row is not one piece of the file."""
        axes = range(1, len(self.shape))
        order = (0, *sorted(axes, key=lambda axis: -self.strides[axis]))  # of axes in the file: channels_last and such
        stored = tuple(self.shape[axis] for axis in order)
        if tuple(self.strides[axis] for axis in order) != _plain_strides(stored):
            raise UserError(f"{self.path}: the tensor is not in one piece; save images.contiguous()")
        rows = AtOffset(self.path, self.start, stored, self.dtype)
        return lambda first, stop: rows(first, stop).transpose(np.argsort(order))


@dataclass(frozen=True)
class _Storage:
    start: int  # bytes in the file
    end: int
    dtype: np.dtype


def read_places(path: Path) -> Any:
    """What torch.save wrote to the zip at `path`, each tensor as its Place; other objects are inert records."""
    # Here, because checkpoints lead to datasets, which lead here.
    from robust_models.checkpoints.torch_format.unpickle import read_pickle

    with _named_failures(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {info.filename: info for info in archive.infolist()}
        pickled = next((name for name in entries if name.split("/")[-1] == "data.pkl"), None)
        if pickled is None:
            raise UserError(f"{path}: a zip, but not one of torch.save (it has no data.pkl)")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big":
            raise UserError(f"{path}: its tensors are big-endian; save them on a little-endian machine")
        if entries[pickled].file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"a pickle of {entries[pickled].file_size:,} bytes")

        def storage(pid: Any) -> _Storage:
            _, kind, key, _, _ = pid
            entry = entries[f"{root}data/{key}"]
            name = kind.name.rsplit(".", 1)[-1].removesuffix("Storage")
            if name not in _STORAGES or entry.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: holds a tensor of {name} numbers; save uint8, uint16, or floats in [0,1]")
            file.seek(entry.header_offset)
            name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
            return _Storage(start, start + entry.file_size, np.dtype(_STORAGES[name]))

        def tensor(stored: _Storage, offset: int, shape: Any, strides: Any, *rest: Any) -> Place:
            dtype = np.dtype(np.uint16) if [getattr(part, "name", "") for part in rest[-1:]] == [_UINT16] else None
            return _place(path, stored, offset, tuple(shape), tuple(strides), dtype or stored.dtype)

        rebuild: dict[str, Callable[..., Any]] = {
            f"torch._utils._rebuild_tensor{version}": tensor for version in ("", "_v2", "_v3")
        }
        rebuild["torch._utils._rebuild_parameter"] = lambda data, *_: data
        return read_pickle(io.BytesIO(archive.read(pickled)), persistent=storage, rebuild=rebuild)


@contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        reason = ascii(" ".join(str(error).split())[:200])[1:-1]
        raise UserError(f"{path}: not a readable .pt ({reason}); make it anew with torch.save") from error


def _place(
    path: Path, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype
) -> Place:
    """Checked against the end of the storage: the file says what it likes."""
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise ValueError("a tensor with an impossible shape")
    start = storage.start + offset * dtype.itemsize
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and start + (last + 1) * dtype.itemsize > storage.end:
        raise ValueError(f"a tensor of shape {list(shape)} is larger than its storage")
    return Place(path, start, shape, strides, dtype)


def _plain_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
