"""Numpy's scalars and arrays in a pickle: numbers and tensors where they hold numbers, else records."""

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_models.checkpoints.torch_format.records import BrokenPickle, Rebuild, Record

MAX_DIMENSIONS, MAX_ELEMENTS = 32, 1 << 48


def _dtype(record: Any) -> np.dtype | None:
    """Of the record of numpy.dtype("f8", ...); None where its elements are not numbers."""
    code = record.args[0] if isinstance(record, Record) and record.name == "numpy.dtype" and record.args else None
    if not (isinstance(code, str) and re.fullmatch(r"[<|]?(b1|[iu][1248]|f[248])", code)):
        return None
    big_endian = isinstance(record.state, tuple) and len(record.state) > 1 and record.state[1] == ">"
    return np.dtype(code).newbyteorder(">" if big_endian else "<")


def _raw(data: Any) -> bytes | bytearray | None:
    """Python 2 wrote bytes as text."""
    return data.encode("latin-1") if isinstance(data, str) else data if isinstance(data, bytes | bytearray) else None


def _scalar(dtype: Any, data: Any = None) -> Any:
    known, raw = _dtype(dtype), _raw(data)
    if known is None or raw is None:
        return Record("numpy scalar", (dtype, data))
    return np.frombuffer(raw, known, count=1)[0].item()


def _tensor(dtype: np.dtype, shape: Any, data: bytes | bytearray, *, column_major: bool) -> Tensor:
    """A tensor of its own memory. BrokenPickle where shape and data disagree."""
    if not (isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS):
        raise BrokenPickle("an array with an impossible shape")
    if not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in shape):
        raise BrokenPickle("an array with an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise BrokenPickle(f"an array of shape {list(shape)} in {len(data)} bytes")
    if dtype == np.bool_:  # a byte that is neither 0 nor 1 is undefined behaviour in kernels
        array = np.frombuffer(data, np.uint8) != 0
    else:
        array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return torch.from_numpy(array.reshape(shape, order="F" if column_major else "C"))


def _empty_array(cls: Any, *_: Any) -> Record:
    """An array whose content follows as its state."""
    return Record(cls.name if isinstance(cls, Record) else "an array without a class", ())


def _with_state(record: Record) -> Tensor | None:
    """state: (version, shape, dtype, column-major?, bytes). None where the elements are not numbers."""
    if not isinstance(record.state, tuple) or len(record.state) != 5:
        return None
    _, shape, dtype, column_major, data = record.state
    known, raw = _dtype(dtype), _raw(data)
    return None if known is None or raw is None else _tensor(known, shape, raw, column_major=column_major is True)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
    """How protocol 5 writes arrays."""
    known, raw = _dtype(dtype), _raw(data)
    if known is None or raw is None:
        return Record("numpy array", (data, dtype, shape))
    return _tensor(known, shape, raw, column_major=order == "F")


def _both(name: str) -> tuple[str, str]:
    """Numpy 2 renamed its core."""
    return f"numpy.core.{name}", f"numpy._core.{name}"


NUMPY: Rebuild = {
    **dict.fromkeys(_both("multiarray.scalar"), _scalar),
    **dict.fromkeys(_both("multiarray._reconstruct"), _empty_array),
    **dict.fromkeys(_both("numeric._frombuffer"), _from_buffer),
}
NUMPY_FINISH: Rebuild = {"numpy.ndarray": _with_state}
