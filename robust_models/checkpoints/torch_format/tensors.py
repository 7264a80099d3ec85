"""Storages and tensors of PyTorch's files: memory of our own, filled from the file, and checked views of it.

Files are read, not mapped: a mapped file that someone else shortens or saves again ends the process that looks at it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from robust_models.checkpoints.torch_format.numpy_values import NUMPY, NUMPY_FINISH
from robust_models.checkpoints.torch_format.records import BrokenPickle, Rebuild, Record

MAX_EXPANDED = 1_000_000  # elements of a tensor with stride 0, which is larger than its storage
MAX_ELEMENTS = 1 << 48

_DTYPES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8},
    **{"Byte": torch.uint8, "Untyped": torch.uint8, "Bool": torch.bool},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}
_DTYPES_BY_NAME = {
    str(dtype): dtype
    for dtype in (
        *_DTYPES.values(),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}


class Storage:
    """Elements of the file as a flat tensor, over bytes that may be read later (then call `make_valid`)."""

    def __init__(self, dtype: torch.dtype, raw: Tensor) -> None:
        self.dtype, self.raw, self.flat = dtype, raw, raw.view(dtype)

    def make_valid(self) -> None:
        """Once the bytes are there: one that is neither 0 nor 1 in a bool is undefined behaviour in kernels."""
        if self.dtype == torch.bool:
            self.raw.clamp_(max=1)

    def part(self, offset: Any, count: Any) -> "Storage":
        """A run of its elements."""
        return Storage(self.dtype, strided(self.flat, offset, (count,), (1,)).view(torch.uint8))

    def tensor(self, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A view of the elements, of another type where one is given. BrokenPickle where any would lie outside."""
        return strided(self.flat if dtype is None else self.raw.view(dtype), offset, size, stride)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was left in the file."""

    path: Path
    start: int  # byte of its first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: torch.dtype


@dataclass(frozen=True)
class StorageInFile:
    """Elements that are left in the file."""

    path: Path
    start: int  # bytes
    size: int  # bytes
    dtype: torch.dtype

    def tensor(self, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> StoredTensor:
        """Where a view of the elements lies. BrokenPickle where any would lie outside."""
        dtype = dtype or self.dtype
        check_view(self.size // dtype.itemsize, offset, size, stride)
        return StoredTensor(self.path, self.start + offset * dtype.itemsize, tuple(size), tuple(stride), dtype)


def empty_bytes(count: int) -> Tensor:
    """Memory for bytes of the file; it costs nothing until it is written."""
    return torch.empty(count, dtype=torch.uint8, device="cpu")


def fill(raw: Tensor, file: BinaryIO) -> None:
    """Reads len(raw) bytes. BrokenPickle where the file ends before."""
    into = memoryview(raw.numpy())  # pyright: ignore[reportArgumentType]  numpy's types do not say so before 3.12
    while len(into):
        got = file.readinto(into)  # pyright: ignore[reportAttributeAccessIssue]
        if not got:
            raise BrokenPickle("a storage lies outside the file")
        into = into[got:]


def dtype_of(storage_type: Any) -> torch.dtype:
    """The type of a storage's elements, by the record of its class. BrokenPickle for one that is not read."""
    name = storage_type.name.rsplit(".", 1)[-1].removesuffix("Storage") if isinstance(storage_type, Record) else ""
    if name not in _DTYPES:
        raise BrokenPickle(f"storages of type {name[:40] or 'unknown'} are not read")
    return _DTYPES[name]


def checked_count(count: Any, dtype: torch.dtype, available: int) -> int:
    """The bytes of `count` elements, which must not be more than `available`."""
    if type(count) is not int or count < 0 or count * dtype.itemsize > available:
        said = str(count)[:30] if type(count) is int and count.bit_length() < 100 else "impossibly many"
        raise BrokenPickle(f"a storage declares {said} elements, more than the file holds")
    return count * dtype.itemsize


def strided(flat: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
    """The view of a flat tensor; BrokenPickle where any of it would lie outside."""
    check_view(len(flat), offset, size, stride)
    # The offset is one into the memory, not into flat.
    return torch.as_strided(flat, tuple(size), tuple(stride), flat.storage_offset() + offset)


def check_view(available: int, offset: Any, size: Any, stride: Any) -> None:
    """BrokenPickle where a view of `available` elements is no shape, or any of it would lie outside."""
    if not (isinstance(size, tuple | list) and isinstance(stride, tuple | list) and len(size) == len(stride) <= 16):
        raise BrokenPickle("a tensor with an impossible shape")
    if not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in (offset, *size, *stride)):
        raise BrokenPickle("a tensor with an impossible shape")
    elements, extent, last = 1, 1, offset
    for n, step in zip(size, stride, strict=True):
        elements, extent = elements * n, extent * max(n, 1)
        last += (n - 1) * step
    if offset > available or (elements and last >= available) or elements > max(available, MAX_EXPANDED):
        raise BrokenPickle(f"a tensor of shape {list(size)} is larger than its storage of {available} elements")
    if extent > MAX_ELEMENTS:
        raise BrokenPickle("a tensor with an impossible shape")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | StoredTensor:
    if not isinstance(storage, Storage | StorageInFile):
        raise BrokenPickle("a tensor without a storage")
    return storage.tensor(offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    """A tensor of a type that has no storage class of its own, in an untyped storage (bytes)."""
    known = _DTYPES_BY_NAME.get(dtype.name) if isinstance(dtype, Record) else None
    if known is None or known == torch.bool or not isinstance(storage, Storage | StorageInFile):
        return Record("torch._utils._rebuild_tensor_v3", (dtype,))
    return storage.tensor(offset, size, stride, known)


def _from_type(function: Any, tensor_type: Any, args: Any, state: Any) -> Any:
    """A subclass of Tensor, or a tensor with attributes: the tensor in it."""
    name = function.name if isinstance(function, Record) else ""
    if name.startswith("torch._utils._rebuild_tensor") and name in REBUILD and isinstance(args, tuple):
        return REBUILD[name](*args)
    return Record("torch._tensor._rebuild_from_type_v2", (tensor_type, args, state))


def _parameter(data: Any = None, *_: Any) -> Any:
    return data if isinstance(data, Tensor | StoredTensor) else Record("torch.nn.parameter.Parameter", (data,))


def _old_variable(record: Record) -> Any:
    """The first torch kept a parameter's tensor as the first of five parts of its state."""
    first = record.state[0] if isinstance(record.state, tuple) and record.state else None
    return first if isinstance(first, Tensor) else None


_PARAMETERS = ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.variable.Variable")

REBUILD: Rebuild = {
    **NUMPY,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    **dict.fromkeys(_PARAMETERS, _parameter),
}
FINISH: Rebuild = {**NUMPY_FINISH, **dict.fromkeys(_PARAMETERS, _old_variable)}
