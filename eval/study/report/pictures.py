"""The images themselves: the same ones before and after each classifier, and what each classifier's gradient sees."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eval.study.report.digest import Digest, Row, SetDigest

SHOWN = 8  # images of a row
ENLARGED = 88  # pixels on a laptop, about, of an image that is smaller
GRID_BYTES, DETAIL_BYTES = 3 << 20, 3 << 19  # of pixels on a page, before they are packed and written in base 64
SPREAD = 3  # standard deviations of a gradient from black to mid-grey, and from there to white


@dataclass(frozen=True)
class Strip:
    """A row of images in one PNG, its place on the page and how often its pixels are repeated there."""

    label: str
    target: str  # anchor that the label leads to
    uri: str
    width: int
    zoom: int
    alt: str


@dataclass(frozen=True)
class Grid:
    """Rows of images under one title."""

    title: str
    strips: tuple[Strip, ...]


def before_after(digest: Digest) -> tuple[Grid, ...]:
    """Of each image set with examples: the raw images, then each classifier's at its lowest distance."""
    chosen = [(one, _raw_and_best(digest, one)) for one in digest.sets]
    side = _side(sum(len(rows) for _, rows in chosen), GRID_BYTES // 2)
    grids = []
    for one, rows in chosen:
        strips = [strip for row in rows if (strip := cell_strip(row, side)) is not None]
        if len(strips) > 1:
            grids.append(Grid(one.name, tuple(strips)))
    return tuple(grids)


def detail_strips(digest: Digest) -> dict[str, Strip]:
    """Of every cell with examples, by anchor."""
    side = _side(len(digest.rows), DETAIL_BYTES)
    return {row.anchor: strip for row in digest.rows if (strip := cell_strip(row, side)) is not None}


def cell_strip(row: Row, side: int) -> Strip | None:
    """The first images of a cell, at most `side` pixels high; None where it has none."""
    arrays = row.cell.arrays
    examples = _read(arrays, "examples_u8") if arrays is not None and row.cell.error is None else None
    if examples is None:
        return None
    alt = f"{min(SHOWN, len(examples))} images of {row.cell.axes.drawn}: {row.label}"
    return _strip(row.label, row.anchor, examples, side, alt)


def gradients(digest: Digest) -> tuple[Strip, ...]:
    """Test images, then the gradient of each classifier's loss at them; none where no classifier has a panel."""
    found = [(one, one.panel) for one in digest.results.classifiers if one.panel is not None and one.error is None]
    side = _side(2 * len(found), GRID_BYTES // 2)
    strips: list[Strip] = []
    shown: np.ndarray | None = None
    for one, panel in found:
        x_u8, gradient, y = (_read(panel, name) for name in ("x_u8", "gradient", "y"))
        if x_u8 is None or gradient is None:
            continue
        anchor = digest.anchor(one.name)
        if shown is None or not np.array_equal(shown, x_u8):
            shown = x_u8
            strips.append(_strip("test images", anchor, x_u8, side, f"test images{_classes(y, one.class_names)}"))
        alt = f"gradient of the loss of {one.name} at each test image"
        strips.append(_strip(one.name, anchor, around_grey(gradient), side, alt))
    return tuple(strips)


def around_grey(gradient: np.ndarray) -> np.ndarray:
    """uint8 [K,3,H,W] of any numbers of that shape: 0 is mid-grey, each image has one scale for both signs.

    The scale is SPREAD standard deviations about 0; what exceeds it is clipped (cf. Tsipras et al. 2019,
    arXiv:1805.12152, figure 2).
    """
    values = np.nan_to_num(gradient.astype(np.float64))
    scale = SPREAD * np.sqrt((values**2).mean(axis=(1, 2, 3), keepdims=True))
    unit = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0).clip(-1, 1)
    return np.rint(128 + 127 * unit).astype(np.uint8)


def _raw_and_best(digest: Digest, one: SetDigest) -> list[Row]:
    best = [row for name in digest.classifiers if (row := one.best([name])) is not None]
    return ([one.raw] if one.raw else []) + best


def _read(path: Path, name: str) -> np.ndarray | None:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name][:SHOWN] if name in arrays.files else None


def _classes(y: np.ndarray | None, names: Sequence[str]) -> str:
    if y is None or not len(y) or len(names) <= int(y.max()):
        return ""
    return " of " + ", ".join(names[int(label)] for label in y)


def _strip(label: str, target: str, x_u8: np.ndarray, side: int, alt: str) -> Strip:
    images = [Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))) for pixels in x_u8]
    width, height = images[0].size
    if max(width, height) > side:
        width, height = (max(1, round(length * side / max(width, height))) for length in (width, height))
        images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
    canvas = Image.new("RGBA", (len(images) * (width + 1) - 1, height))  # between images the page shows through
    for i, image in enumerate(images):
        canvas.paste(image, (i * (width + 1), 0))
    file = io.BytesIO()
    canvas.save(file, "png", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Strip(label, target, uri, canvas.width, max(1, round(ENLARGED / height)), alt)


def _side(num_strips: int, num_bytes: int) -> int:
    """Of images that together take no more than num_bytes of pixels."""
    return int((num_bytes / (3 * SHOWN * max(1, num_strips))) ** 0.5)
