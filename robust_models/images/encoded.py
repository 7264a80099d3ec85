"""Image sets of encoded files (folders, tar shards, parquet): decoded once up front, then as they are asked for."""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.codec import decode, decode_alpha, encode_png
from robust_models.images.image_set import ImageSet, OnError
from robust_models.images.pixels import Depth

T = TypeVar("T")
Fetch = Callable[[], bytes]  # an encoded image, not yet read, so that threads read side by side
_THREADS = 8
_SURVEYED_AT_ONCE = 128  # files


@dataclass(frozen=True)
class EncodedImages(ImageSet):
    """Images as PNG, JPEG, ...: a refined one is a PNG of the same depth and with the alpha channel of its source."""

    @abstractmethod
    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        """Images start..stop-1 as they are stored."""

    def read(self, start: int, stop: int) -> Tensor:
        names = [f"{self.path}: {name}" for name in self.names[start:stop]]
        pixels = np.stack(_in_threads(_fetch_pixels, self.encoded(start, stop), names))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def as_png(self, start: int, x: Tensor) -> list[bytes]:
        """Refined images [n,3,H,W] from number `start` on, each with the alpha channel of its source, if any."""
        return encode_all(x, self.encoded(start, start + len(x)))


def encode_all(x: Tensor | np.ndarray, sources: Sequence[Fetch]) -> list[bytes]:
    """[n,3,H,W] uint8 or uint16 as PNG, with the alpha channels that their sources have."""
    pixels = (x.cpu().numpy() if isinstance(x, Tensor) else x).transpose(0, 2, 3, 1)
    return _in_threads(_png_like, pixels, sources)


def _png_like(pixels: np.ndarray, source: Fetch) -> bytes:
    return encode_png(pixels, decode_alpha(source(), "the source"))


def _fetch_pixels(fetch: Fetch, name: str) -> np.ndarray:
    return decode(fetch(), name)


def _in_threads(work: Callable[..., T], *columns: Sequence[Any] | np.ndarray) -> list[T]:
    """[work(*row) for row in zip(*columns)], in pieces long enough that small images do not drown in their handling."""
    count = len(columns[0])
    step = -(-count // _THREADS) or 1
    pieces = [[column[start : start + step] for column in columns] for start in range(0, count, step)]
    with ThreadPoolExecutor(_THREADS) as pool:
        done = pool.map(lambda piece: [work(*row) for row in zip(*piece, strict=True)], pieces)
        return [result for results in done for result in results]


class Survey(NamedTuple):
    """What decoding every file once showed."""

    kept: np.ndarray  # int64, numbers of the readable images
    size: tuple[int, int]
    depth: Depth
    skipped: tuple[str, ...]


class _Look(NamedTuple):
    size: tuple[int, int]
    depth: Depth


def survey(
    path: Path,
    names: Sequence[str],
    encoded: Callable[[int, int], Sequence[Fetch]],
    on_error: OnError,
    *,
    between: str = ": ",  # path and name, in messages
) -> Survey:
    """Decodes every image once and keeps no pixels.

    UserError, one line, where one cannot be decoded (with on_error="skip": where none can), or where sizes or depths
    differ.
    """
    kept = array("q")
    problems: list[str] = []
    first: tuple[str, _Look] | None = None
    mixed: str | None = None
    for i, found in enumerate(_looks(f"{path}{between}", names, encoded)):
        if isinstance(found, str):
            problems.append(found)
            continue
        kept.append(i)
        first = first or (names[i], found)
        if found != first[1]:
            mixed = mixed or _difference(path, *first, names[i], found)
    if first is None or (problems and on_error == "fail"):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; mend or remove it, or pass --on-error skip")
    if mixed:
        raise UserError(mixed)
    return Survey(np.array(kept, np.int64), *first[1], tuple(problems))


def _looks(place: str, names: Sequence[str], encoded: Callable[[int, int], Sequence[Fetch]]) -> Iterator[_Look | str]:
    for start in range(0, len(names), _SURVEYED_AT_ONCE):
        stop = min(start + _SURVEYED_AT_ONCE, len(names))
        yield from _in_threads(partial(_look, place), encoded(start, stop), names[start:stop])


def _look(place: str, fetch: Fetch, name: str) -> _Look | str:
    """Size and depth of an image, or what is wrong with it."""
    try:
        pixels = decode(fetch(), f"{place}{name}")
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{place}{name}: cannot be read ({error.strerror or error})"
    height, width, _ = pixels.shape
    return _Look((height, width), "uint16" if pixels.dtype == np.uint16 else "uint8")


def _difference(path: Path, name: str, look: _Look, other_name: str, other: _Look) -> str:
    if look.size != other.size:
        (height, width), (other_height, other_width) = look.size, other.size
        return (
            f"{path}: mixed sizes: {name} is {width}x{height}, {other_name} is {other_width}x{other_height}; "
            "resize them to one size first"
        )
    return f"{path}: mixed depths: {name} is {look.depth}, {other_name} is {other.depth}; convert them to one first"


@contextmanager
def feeding(consumer: Generator[None, T, None]) -> Iterator[Callable[[T], None]]:
    """Turns a generator that asks for each item with `item = yield` into a function that is given them.

    So a writer can read as a plain loop over its source, though the images come from outside. The generator runs to its
    end with the last item.
    """
    next(consumer)

    def give(item: T) -> None:
        try:
            consumer.send(item)
        except StopIteration:
            pass

    try:
        yield give
    finally:
        consumer.close()
