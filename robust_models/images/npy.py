"""`.npy`: one array of images, channels last or first."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_models.errors import DECODING_FAILURES, UserError, reason
from robust_models.images.arrays import ArrayImages, AtOffset, describe, opened_rows, pick, read_header
from robust_models.images.image_set import ALL, Add, Opened, Sample
from robust_models.images.pixels import check_range


@dataclass(frozen=True, kw_only=True)
class NpyImages(ArrayImages):
    """The images of an .npy file, which has no labels."""

    kind = "npy"
    suffixes = (".npy",)

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        """The same layout and type; an .npy has no place for labels."""
        return opened_rows(out, self.shape, self.stored.newbyteorder("="), channels_first=self.channels_first)


def open_npy(path: Path, sample: Sample = ALL) -> Opened:
    """Reads the header, and the sample's floats once, to know their range.

    UserError where the file holds no images or is cut.
    """
    try:
        with path.open("rb") as stream:
            header = read_header(stream)
            offset = stream.tell()
    except DECODING_FAILURES as error:
        raise UserError(f"{path}: not a readable .npy ({reason(error)}); make it anew with numpy.save") from error
    found = describe(header.shape, header.dtype, kind="npy", source=f"{path}: the array")
    if header.fortran_order:
        raise UserError(f"{path}: the array is in Fortran order; save numpy.ascontiguousarray(images)")
    expected = offset + math.prod(header.shape) * header.dtype.itemsize
    if (size := path.stat().st_size) < expected:
        raise UserError(f"{path}: cut short: {size:,} of {expected:,} bytes are there; copy or make it anew")
    picked = pick(AtOffset(path, offset, header.shape, header.dtype), header.shape[0], None, sample)
    if found.depth == "float32":
        row_bytes = (expected - offset) // header.shape[0]
        check_range(picked.rows, len(picked.numbers), row_bytes, source=f"{path}: the array")
    images = NpyImages(
        path,
        picked.names,
        found.size,
        None,
        None,
        depth=found.depth,
        about=found.about,
        notes=found.notes,
        rows=picked.rows,
        stored=header.dtype,
        layout=found.layout,
    )
    return Opened(images, picked.places, header.shape[0], None)
