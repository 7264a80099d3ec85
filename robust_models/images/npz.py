"""`.npz` as guided-diffusion writes it: `arr_0` [N,H,W,3], `arr_1` labels [N], and `class_names` where we wrote it."""

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from robust_models.errors import DECODING_FAILURES, UserError, reason
from robust_models.images.arrays import (
    ArrayImages,
    AtOffset,
    Rows,
    check_labels,
    choose_arrays,
    describe,
    pick,
    read_header,
    row_writer,
    write_header,
)
from robust_models.images.forward import Forward
from robust_models.images.image_set import ALL, Add, Opened, Sample, Split
from robust_models.images.pixels import check_range, max_bytes, too_large
from robust_models.runtime.files import whole_file

_PIXELS = "arr_0.npy"  # the entry's name
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, length of the name, length of the extra field
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NpzImages(ArrayImages):
    """The images of an .npz file, with labels and class names where it has them."""

    kind = "npz"
    suffixes = (".npz",)

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        dtype = self.stored.newbyteorder("=")
        return npz_writer(out, self.shape, dtype, labels, class_names, channels_first=self.channels_first)


def open_npz(path: Path, split: Split = "train", sample: Sample = ALL) -> Opened:
    """Every byte of the images is read once here, for its checksum, unless a sample of them is opened; nothing but
    labels and names stays in memory.

    Rows of a stored array (numpy.savez) are then read by their place in the file. A compressed one (savez_compressed)
    is streamed: in order it is read once more, and each step backwards starts over. UserError where the archive is
    broken or holds no images, or labels and names of more than max_bytes().
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a readable .npz; make one with numpy.savez(path, arr_0=images), or give a folder")
    with _failures_named(path), zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        chosen = choose_arrays(keys, split, source=str(path), usual="arr_0")
        if chosen is None:
            listed = ", ".join(keys)[:300] or "nothing"
            raise UserError(f"{path}: no array 'arr_0' (it holds: {listed}); images are expected there as [N,H,W,3]")
        labels = None if chosen.labels is None else _small_array(path, archive, chosen.labels)
        names = _small_array(path, archive, "class_names") if "class_names" in keys else None
        class_names = None if names is None else tuple(str(name) for name in names.flatten())
        entry = archive.getinfo(f"{chosen.images}.npy")
        with archive.open(entry) as stream:
            header = read_header(stream)
            skipped = stream.tell()
            found = describe(header.shape, header.dtype, kind="npz", source=f"{path}: {chosen.images}")
            if sample.size(header.shape[0]) == header.shape[0]:
                _read_to_the_end(stream, math.prod(header.shape) * header.dtype.itemsize)
        start = _data_start(path, entry)
    where = f"{path}: {chosen.images}"
    if header.fortran_order:
        raise UserError(f"{where} is in Fortran order; save numpy.ascontiguousarray(images)")
    count, stored = header.shape[0], entry.compress_type == zipfile.ZIP_STORED
    rows = (
        AtOffset(path, start + skipped, header.shape, header.dtype)
        if stored
        else _streamed(path, entry.filename, header.shape, header.dtype)
    )
    y = None if labels is None else check_labels(labels, count, source=f"{path}: {chosen.labels}")
    picked = pick(rows, count, y, sample)
    if found.depth == "float32":
        check_range(picked.rows, len(picked.numbers), _row_bytes(header.shape, header.dtype), source=where)
    images = NpzImages(
        path,
        picked.names,
        found.size,
        picked.labels(y),
        class_names,
        depth=found.depth,
        about=found.about if stored else f"{found.about}, compressed",
        notes=chosen.notes + found.notes,
        rows=picked.rows,
        stored=header.dtype,
        layout=found.layout,
    )
    return Opened(images, picked.places, count, y)


def _small_array(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """A whole array. UserError where it is larger than max_bytes(), by its header, or holds objects."""
    with archive.open(f"{key}.npy") as stream:
        header = read_header(stream)
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > max_bytes():
        raise UserError(too_large(f"{path}: {key} is {header.dtype} {list(header.shape)}, {size:,} bytes", size))
    with archive.open(f"{key}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except DECODING_FAILURES as error:
        raise UserError(f"{path}: not a readable .npz ({reason(error)}); make it anew with numpy.savez") from error


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
    *,
    channels_first: bool = False,
) -> Iterator[Add]:
    """Streams arr_0, [N,H,W,3] or [N,3,H,W], into the archive; memory does not grow with the images."""
    extra = {"arr_1": labels, "class_names": None if class_names is None else np.array(list(class_names))}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in extra.items():
            if array is not None:
                with archive.open(_fixed_date(f"{name}.npy"), "w") as stream:
                    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
        with archive.open(_fixed_date(_PIXELS), "w", force_zip64=True) as stream:
            write_header(stream, shape, dtype)
            yield row_writer(stream, dtype, channels_first=channels_first)


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


def _streamed(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Rows:
    def from_the_first(_: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            read_header(stream)
            for _ in range(shape[0]):
                yield np.frombuffer(stream.read(_row_bytes(shape, dtype)), dtype).reshape(shape[1:])

    forward = Forward(landing=lambda _: 0, begin=from_the_first)

    def rows(start: int, stop: int) -> np.ndarray:
        with _failures_named(path):
            return np.stack(forward(start, stop))

    return rows


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape[1:]) * dtype.itemsize
