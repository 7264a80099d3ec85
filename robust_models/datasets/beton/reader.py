"""FFCV's `.beton` files: read without FFCV, any of them that has images and integer labels.

Layout (version 2): a header, a descriptor per field, the fields' metadata per sample, pages of data, and at the end a
table of each sample's place. train.loaders.ffcv decodes them many times faster where FFCV is installed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_models.datasets.stores import Store, as_u8
from robust_models.errors import UserError
from robust_models.images.codec import decode

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table_at", "<u8")],
    align=True,
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True)
TABLE = np.dtype([("sample", "<u8"), ("at", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("at", "<u8")])
INT_FIELD, IMAGE_FIELD = 1, 2  # type_id
JPEG, RAW = 0, 1  # mode
NAMES = np.dtype([("mark", "S8"), ("at", "<u8"), ("size", "<u8")])  # ours, among a field's arguments, unused by FFCV
NAMES_MARK = b"classes"

_POINTER_AND_SIZE = [("at", "<u8"), ("size", "<u8")]
_METADATA = {
    0: "<f8",
    INT_FIELD: "<i8",
    IMAGE_FIELD: IMAGE,
    3: _POINTER_AND_SIZE,
    4: "<u8",
    5: _POINTER_AND_SIZE,
    6: "<u8",
}


@dataclass(frozen=True)
class BetonStore(Store):
    """The samples of one file, decoded when they are asked for."""

    path: Path
    image_field: str  # its name, which FFCV's loader asks for
    field_names: tuple[str, ...]
    samples: np.ndarray  # IMAGE [N]
    num_bytes: np.ndarray  # int64 [N], as stored

    def image(self, number: int) -> np.ndarray:
        """uint8 [H,W,3]. UserError where the file is shorter than when it was opened."""
        sample = self.samples[number]
        height, width, at = int(sample["height"]), int(sample["width"]), int(sample["at"])
        size = int(self.num_bytes[number])
        content = np.fromfile(self.path, np.uint8, size, offset=at)
        if len(content) < size:
            raise UserError(f"{self.path}: sample {number} is gone; was the file cut while in use?")
        if sample["mode"] == RAW:
            return content.reshape(height, width, 3)
        return as_u8(decode(content.tobytes(), f"{self.path}: sample {number}"))

    @property
    def uniform(self) -> bool:
        """Whether all images have one size."""
        return all((self.samples[side] == self.samples[side][0]).all() for side in ("height", "width"))

    @property
    def image_size(self) -> int:
        """Side of the images in pixels; UserError where they are not squares of one size."""
        height, width = (int(self.samples[side][0]) for side in ("height", "width"))
        if not self.uniform or height != width:
            raise UserError(f"{self.path}: images of several sizes, or not square; say --data.image-size")
        return height

    def check_size(self, image_size: int) -> None:
        """UserError where every image is smaller than image_size pixels (in photographs, some always are)."""
        largest = int(np.minimum(self.samples["height"], self.samples["width"]).max())
        if largest < image_size:
            raise UserError(
                f"data.image_size: {image_size} px, but {self.path} was made for another resolution (its images have "
                f"{largest} px at most); write it anew, or give --data.image-size {largest}"
            )


def open_beton(path: Path) -> tuple[BetonStore, tuple[str, ...]]:
    """The samples and the names of their classes ("0", "1", ... where FFCV wrote the file).

    UserError for a broken file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        header = np.fromfile(path, HEADER, 1)[0]
        if header["version"] != VERSION:
            raise UserError(f"{path}: beton version {header['version']}, expected {VERSION}; write it anew")
        count, table_at = int(header["num_samples"]), int(header["table_at"])
        if not count or not 0 < table_at < path.stat().st_size:
            raise UserError(f"{path}: cut short or never finished; write it anew")
        fields = np.fromfile(path, FIELD, int(header["num_fields"]), offset=HEADER.itemsize)
        types = [int(field["type_id"]) for field in fields]
        if not set(types) <= set(_METADATA) or not {IMAGE_FIELD, INT_FIELD} <= set(types):
            raise UserError(f"{path}: needs an RGBImageField and an IntField for the label; write it anew")
        row = np.dtype([("", _METADATA[kind]) for kind in types], align=True)
        rows = np.fromfile(path, row, count, offset=HEADER.itemsize + fields.nbytes)
        table = np.fromfile(path, TABLE, offset=table_at)
        label_field, image_field = fields[types.index(INT_FIELD)], types.index(IMAGE_FIELD)
        class_names = _class_names(path, label_field)
    except (IndexError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable .beton ({error}); write it anew") from error
    samples = rows[f"f{image_field}"].copy()
    labels = rows[f"f{types.index(INT_FIELD)}"].astype(np.int64)
    if len(rows) < count or not (samples["height"].all() and samples["width"].all()):
        raise UserError(f"{path}: cut short or never finished; write it anew")
    class_names = class_names or tuple(str(i) for i in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise UserError(
            f"{path}: labels run from {labels.min()} to {labels.max()}; expected 0 to {len(class_names) - 1}"
        )
    names = tuple(_name(field) for field in fields)
    return BetonStore(labels, path, names[image_field], names, samples, _num_bytes(path, samples, table)), class_names


def _num_bytes(path: Path, samples: np.ndarray, table: np.ndarray) -> np.ndarray:
    table = table[np.argsort(table["at"])]
    rows = np.searchsorted(table["at"], samples["at"])
    if not len(table) or (rows == len(table)).any() or (table["at"][rows] != samples["at"]).any():
        raise UserError(f"{path}: cut short or never finished; write it anew")
    found = table["size"][rows].astype(np.int64)
    pixels = samples["height"].astype(np.int64) * samples["width"] * 3
    if ((samples["mode"] == RAW) & (found != pixels)).any():
        raise UserError(f"{path}: its table does not fit its images; write it anew")
    return found


def _name(field: np.void) -> str:
    return field["name"].tobytes().rstrip(b"\0").decode("ascii")


def _class_names(path: Path, field: np.void) -> tuple[str, ...]:
    found = np.frombuffer(field["arguments"].tobytes(), NAMES, 1)[0]
    if found["mark"] != NAMES_MARK:
        return ()
    content = np.fromfile(path, np.uint8, int(found["size"]), offset=int(found["at"]))
    return tuple(str(name) for name in json.loads(content.tobytes()))
