"""`.npz` as guided-diffusion writes it: `arr_0` [N,H,W,3], `arr_1` labels [N], and `class_names` where we wrote it."""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.arrays import (
    ArrayImages,
    AtOffset,
    Rows,
    check_labels,
    describe,
    read_header,
    row_writer,
    write_header,
)
from robust_models.images.forward import Forward
from robust_models.images.image_set import Add
from robust_models.images.pixels import check_range, depth_of
from robust_models.runtime.files import whole_file

_PIXELS = "arr_0.npy"  # the entry's name
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, length of the name, length of the extra field
_CHUNK_BYTES = 1 << 20
_BROKEN = (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class NpzImages(ArrayImages):
    kind = "npz"
    suffixes = (".npz",)

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        return npz_writer(out, self.shape, self.stored.newbyteorder("="), labels, class_names)


def open_npz(path: Path) -> NpzImages:
    """Every byte is read once here, for its checksum; nothing but labels and names stays in memory.

    Rows of a stored array (numpy.savez) are then read by their place in the file. A compressed one (savez_compressed)
    is streamed: in order it is read once more, and each step backwards starts over.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a readable .npz; make one with numpy.savez(path, arr_0=images), or give a folder")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            listed = ", ".join(arrays.files) or "nothing"
            if "arr_0" not in arrays.files:
                raise UserError(
                    f"{path}: no array 'arr_0' (it holds: {listed}); images are expected there as [N,H,W,3]"
                )
            labels, names = (arrays[key] if key in arrays.files else None for key in ("arr_1", "class_names"))
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(_PIXELS)
            with archive.open(entry) as stream:
                header = read_header(stream)
                skipped = stream.tell()
                found = describe(header.shape, header.dtype, kind="npz", source=f"{path}: arr_0", either_layout=False)
                _read_to_the_end(stream, int(np.prod(header.shape)) * header.dtype.itemsize)
        start = _data_start(path, entry)
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(f"{path}: not a readable .npz ({error}); make it anew with numpy.savez") from error
    if header.fortran_order:
        raise UserError(f"{path}: arr_0 is in Fortran order; save numpy.ascontiguousarray(images)")
    count, stored = header.shape[0], entry.compress_type == zipfile.ZIP_STORED
    rows = (
        AtOffset(path, start + skipped, header.shape, header.dtype)
        if stored
        else _streamed(path, header.shape, header.dtype)
    )
    depth = depth_of(header.dtype)
    assert depth is not None
    if depth == "float32":
        check_range(rows, count, _row_bytes(header.shape, header.dtype), source=f"{path}: arr_0")
    return NpzImages(
        path,
        found.names,
        found.size,
        None if labels is None else check_labels(labels, count, source=f"{path}: arr_1"),
        None if names is None else tuple(str(name) for name in names),
        depth=depth,
        about=found.about if stored else f"{found.about}, compressed",
        rows=rows,
        stored=header.dtype,
        channels_first=False,
    )


def write_npz(
    out: Path, x_u8: Tensor, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> None:
    """A whole image set [N,3,H,W] as one `.npz`, written at once or not at all."""
    n, _, height, width = x_u8.shape
    with (
        whole_file(out) as partial,
        npz_writer(partial, (n, height, width, 3), x_u8.numpy().dtype, labels, class_names) as add,
    ):
        add(x_u8)


@contextmanager
def npz_writer(
    file: Path,
    shape: tuple[int, int, int, int],
    dtype: np.dtype,
    labels: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> Iterator[Add]:
    """Streams arr_0 [N,H,W,3] into the archive, so that memory does not grow with the number of images."""
    extra = {"arr_1": labels, "class_names": None if class_names is None else np.array(list(class_names))}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in extra.items():
            if array is not None:
                with archive.open(_fixed_date(f"{name}.npy"), "w") as stream:
                    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
        with archive.open(_fixed_date(_PIXELS), "w", force_zip64=True) as stream:
            write_header(stream, shape, dtype)
            yield row_writer(stream, dtype, channels_first=False)


def _fixed_date(name: str) -> zipfile.ZipInfo:
    """Equal images give equal bytes: no clock in the archive."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _data_start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the entry's bytes begin: behind its local header, whose length only it knows."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes


def _read_to_the_end(stream: IO[bytes], expected: int) -> None:
    """EOFError where the stream is shorter; zipfile raises BadZipFile at its end where the checksum differs."""
    count = 0
    while chunk := stream.read(_CHUNK_BYTES):
        count += len(chunk)
    if count < expected:
        raise EOFError(f"arr_0 has {count:,} of {expected:,} bytes")


def _streamed(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Rows:
    def from_the_first(_: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(_PIXELS) as stream:
            read_header(stream)
            for _ in range(shape[0]):
                yield np.frombuffer(stream.read(_row_bytes(shape, dtype)), dtype).reshape(shape[1:])

    rows = Forward(landing=lambda _: 0, begin=from_the_first)
    return lambda start, stop: np.stack(rows(start, stop))


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape[1:])) * dtype.itemsize
