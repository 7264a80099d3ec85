"""The images of a survey, in memory as raters see them: 8 bits, encoded alike whatever file they came from."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from eval.survey.order import Shown
from robust_models.errors import UserError
from robust_models.images import ImageSet, to_float, to_u8

_AT_ONCE = 64  # images
_MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class Pairs:
    """Images `numbers` of both sets, uint8 [P,H,W,3] each."""

    numbers: tuple[int, ...]
    before: np.ndarray
    after: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height, width in pixels."""
        return self.before.shape[1], self.before.shape[2]

    def png(self, number: int, shown: Shown) -> bytes:
        """One image as raters get it. Not compressed: the number of bytes is the same for all."""
        row = self.numbers.index(number)
        if shown == "ruined":
            pixels = _ruined(self.before[row], number)
        else:
            pixels = (self.before if shown == "before" else self.after)[row]
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
        return stream.getvalue()


def read_pairs(before: ImageSet, after: ImageSet, numbers: Sequence[int]) -> Pairs:
    """UserError where they do not fit in memory."""
    height, width = before.size
    needed = 2 * len(numbers) * height * width * 3
    if needed > _MAX_BYTES:
        most = _MAX_BYTES * len(numbers) // needed
        raise UserError(f"pairs: {len(numbers)} would take {needed / 2**30:.1f} GiB of memory; give --pairs {most}")
    return Pairs(tuple(numbers), _read(before, numbers), _read(after, numbers))


def check_alike(before: ImageSet, after: ImageSet) -> None:
    """UserError unless the sets can be pairs: as many images, of one size."""
    if len(before) != len(after):
        raise UserError(
            f"after: {after.path} has {len(after)} images, {before.path} {len(before)}; give pairs in order"
        )
    if before.size != after.size:
        (h, w), (h2, w2) = before.size, after.size
        raise UserError(f"after: images of {after.path} are {w2}x{h2}, of {before.path} {w}x{h}; give both one size")


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of shape and pixels: what raters see, not the file it came in."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _read(images: ImageSet, numbers: Sequence[int]) -> np.ndarray:
    """uint8 [P,H,W,3], in one pass forwards: some kinds of sets cannot be read in another order."""
    wanted = np.asarray(numbers)
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        here = wanted[(wanted >= start) & (wanted < start + _AT_ONCE)]
        if len(here):
            first = int(here[0])
            x = images.read(first, int(here[-1]) + 1)
            parts.append(to_u8(to_float(x))[here - first].permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(parts))


def _ruined(pixels: np.ndarray, seed: int) -> np.ndarray:
    """A quarter of the image under three quarters of uniform noise: nobody who looks takes it for the better one."""
    noise = np.random.default_rng(seed).integers(0, 256, pixels.shape, dtype=np.uint16)
    return ((pixels + 3 * noise) // 4).astype(np.uint8)
