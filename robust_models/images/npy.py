"""`.npy`: one array of images, channels last or first."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_models.errors import UserError
from robust_models.images.arrays import ArrayImages, AtOffset, describe, opened_rows, read_header
from robust_models.images.image_set import Add
from robust_models.images.pixels import check_range, depth_of


@dataclass(frozen=True, kw_only=True)
class NpyImages(ArrayImages):
    kind = "npy"
    suffixes = (".npy",)

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        """The same layout and type; an .npy has no place for labels."""
        return opened_rows(out, self.shape, self.stored.newbyteorder("="), channels_first=self.channels_first)


def open_npy(path: Path) -> NpyImages:
    try:
        with path.open("rb") as stream:
            header = read_header(stream)
            offset = stream.tell()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy ({error}); make it anew with numpy.save") from error
    found = describe(header.shape, header.dtype, kind="npy", source=f"{path}: the array", either_layout=True)
    if header.fortran_order:
        raise UserError(f"{path}: the array is in Fortran order; save numpy.ascontiguousarray(images)")
    expected = offset + int(np.prod(header.shape)) * header.dtype.itemsize
    if (size := path.stat().st_size) < expected:
        raise UserError(f"{path}: cut short: {size:,} of {expected:,} bytes are there; copy or make it anew")
    rows = AtOffset(path, offset, header.shape, header.dtype)
    depth = depth_of(header.dtype)
    assert depth is not None
    if depth == "float32":
        row_bytes = (expected - offset) // header.shape[0]
        check_range(rows, header.shape[0], row_bytes, source=f"{path}: the array")
    return NpyImages(
        path,
        found.names,
        found.size,
        None,
        None,
        depth=depth,
        about=found.about,
        rows=rows,
        stored=header.dtype,
        channels_first=found.channels_first,
    )
