"""Writes `.beton` files that FFCV's loader reads. FFCV's own writer waits for ever when one of its workers fails."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from robust_models.datasets.beton.reader import (
    FIELD,
    HEADER,
    IMAGE,
    IMAGE_FIELD,
    INT_FIELD,
    JPEG,
    NAMES,
    NAMES_MARK,
    RAW,
    TABLE,
    VERSION,
    open_beton,
)
from robust_models.errors import UserError
from robust_models.runtime.files import check_replaces, whole_file

_PAGE = 8 << 20  # bytes; a sample lies within one page


def _is_beton(path: Path) -> bool:
    try:
        open_beton(path)
    except UserError:
        return False
    return True


def write_beton(
    path: Path,
    images: Iterable[np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    jpeg_quality: int | None = None,
) -> None:
    """Writes images uint8 [H,W,3], one for each of labels int64 [N].

    They are stored as pixels or, with jpeg_quality (1 to 100), as JPEG.
    The class names go into a part of the header that FFCV does not use. UserError for an image of more than 8 MiB, and
    where a file stands at `path` that is no .beton.
    """
    check_replaces(path, _is_beton, ".beton")
    fields = np.zeros(2, FIELD)
    fields["type_id"] = IMAGE_FIELD, INT_FIELD
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    rows = np.zeros(len(labels), np.dtype([("", IMAGE), ("", "<i8")], align=True))
    rows["f1"] = labels
    names = json.dumps(list(class_names)).encode()
    names_at = HEADER.itemsize + fields.nbytes + rows.nbytes
    pointer = np.array([(NAMES_MARK, names_at, len(names))], NAMES)
    fields[1]["arguments"][: NAMES.itemsize] = np.frombuffer(pointer.tobytes(), np.uint8)

    table = np.zeros(len(labels), TABLE)
    table["sample"] = np.arange(len(labels))
    end = _next_page(names_at + len(names))
    with whole_file(path) as partial, partial.open("wb") as file:
        for row, entry, image in zip(rows["f0"], table, images, strict=True):
            content = image.tobytes() if jpeg_quality is None else _jpeg(image, jpeg_quality)
            if len(content) > _PAGE:
                raise UserError(f"{path}: an image of {len(content):,} bytes; at most {_PAGE:,}: give --max-resolution")
            if end % _PAGE + len(content) > _PAGE:
                end = _next_page(end)
            row["mode"], row["at"] = RAW if jpeg_quality is None else JPEG, end
            row["height"], row["width"] = image.shape[:2]
            entry["at"], entry["size"] = end, len(content)
            file.seek(end)
            file.write(content)
            end += len(content)
        header = np.array([(VERSION, len(fields), _PAGE, len(labels), _next_page(end))], HEADER)
        file.seek(_next_page(end))
        file.write(table.tobytes())
        file.seek(0)
        for part in (header, fields, rows):
            file.write(part.tobytes())
        file.write(names)


def _next_page(place: int) -> int:
    return -(-place // _PAGE) * _PAGE


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
