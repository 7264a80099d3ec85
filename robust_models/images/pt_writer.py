"""torch.save's zip format, written as a stream: torch.save itself wants the whole tensor in memory."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import _utils

from robust_models.images.arrays import row_writer
from robust_models.images.image_set import Add

_ROOT = "archive"
_FORMAT_VERSION = b"3\n"
_ALIGNMENT = 64  # bytes; a mapped storage begins at a multiple
_LOCAL_HEADER = 30 + 20  # bytes before the name and, with sizes of 64 bits, behind it
_PADDING_FIELD = b"FB"  # torch.save's own name for it in the extra field
_STORAGES = {"uint8": "Byte", "int64": "Long", "float16": "Half", "float32": "Float", "float64": "Double"}


@dataclass(frozen=True)
class Placeholder:
    """Stands in the content for the tensor that is streamed."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class _Storage:
    pid: tuple[Any, ...]


@contextmanager
def pt_writer(file: Path, content: Any, *, channels_first: bool) -> Iterator[Add]:
    """`content`, with one Placeholder and any number of integer arrays in it, as torch.save would write it.

    Gives `add(x [n,3,H,W])` for the rows of the Placeholder. Equal images give equal bytes.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    assert pickler.streamed is not None
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        small = {"data.pkl": pickled.getvalue(), "byteorder": b"little", "version": _FORMAT_VERSION}
        small |= {f"data/{key}": array.tobytes() for key, array in pickler.arrays.items()}
        for name, data in small.items():
            with _entry(archive, name) as stream:
                stream.write(data)
        key, placeholder = pickler.streamed
        with _entry(archive, f"data/{key}") as stream:
            yield row_writer(stream, placeholder.dtype, channels_first=channels_first)


@contextmanager
def _entry(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    assert archive.fp is not None
    begin = archive.fp.tell() + _LOCAL_HEADER + len(info.filename) + 4
    padding = -begin % _ALIGNMENT
    info.extra = _PADDING_FIELD + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as stream:
        yield stream


class _Pickler(pickle.Pickler):
    """Pickles arrays and the Placeholder as tensors; their bytes are for the caller to write, by the storage's key."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, protocol=2)
        self.arrays: dict[str, np.ndarray] = {}
        self.streamed: tuple[str, Placeholder] | None = None

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray | Placeholder):
            return NotImplemented
        if isinstance(obj, Placeholder):
            key = "images"
            self.streamed = key, obj
        else:
            key = str(len(self.arrays))
            self.arrays[key] = obj
        return _as_tensor(key, obj.shape, obj.dtype)


def _as_tensor(key: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, tuple[Any, ...]]:
    """How torch.save reduces a C-ordered tensor: by a typed storage, or by bytes for the types that have none."""
    count = int(np.prod(shape))
    strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    view = (0, shape, strides, False, OrderedDict())  # offset ... requires_grad, hooks
    if dtype.name in _STORAGES:
        typed = getattr(torch, f"{_STORAGES[dtype.name]}Storage")
        return _utils._rebuild_tensor_v2, (_Storage(("storage", typed, key, "cpu", count)), *view)
    plain = _Storage(("storage", torch.UntypedStorage, key, "cpu", count * dtype.itemsize))
    return _utils._rebuild_tensor_v3, (plain, *view, getattr(torch, dtype.name))
