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
from robust_models.images.codec import can_hold, decode, decode_alpha, encode
from robust_models.images.image_set import ALL, ImageSet, OnError, Sample, difference, ranks
from robust_models.images.pixels import Depth

T = TypeVar("T")
Fetch = Callable[[], bytes]  # an encoded image, not yet read, so that threads read side by side
Encoded = Callable[[Sequence[int]], Sequence[Fetch]]  # images by their numbers, which ascend
_THREADS = 8
_SURVEYED_AT_ONCE = 128  # files
_CHANGED = "it was changed while in use: leave the input alone and run again"


@dataclass(frozen=True)
class EncodedImages(ImageSet):
    """Images as PNG, JPEG, ...: a refined one has the depth and the alpha channel of its source."""

    @abstractmethod
    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        """Images start..stop-1 as they are stored."""

    def read(self, start: int, stop: int) -> Tensor:
        """[n,3,H,W], uint8 or uint16. UserError where an image is gone or was changed since the set was opened."""
        names = self.shown_names(start, stop)
        work = partial(_fetch_pixels, self.size, self.depth)
        pixels = np.stack(_in_threads(work, self.encoded(start, stop), names))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def shown_names(self, start: int, stop: int) -> list[str]:
        """What messages call images start..stop-1."""
        return [f"{self.path}: {name}" for name in self.names[start:stop]]

    def as_png(self, start: int, x: Tensor) -> list[bytes]:
        """Refined images [n,3,H,W] from number `start` on, each with the alpha channel of its source, if any."""
        return encode_all(x, self.encoded(start, start + len(x)))


def encode_all(x: Tensor | np.ndarray, sources: Sequence[Fetch]) -> list[bytes]:
    """[n,3,H,W] uint8 or uint16 as PNG, with the alpha channels that their sources have."""
    pixels = (x.cpu().numpy() if isinstance(x, Tensor) else x).transpose(0, 2, 3, 1)
    return _in_threads(encode_like, pixels, sources)


def encode_each(x: Tensor, sources: Sequence[Fetch], suffixes: Sequence[str]) -> list[tuple[str, bytes]]:
    """[n,3,H,W] uint8 or uint16 as image files with these suffixes, or .png where that alone can hold the image.

    The suffix, and the file's content, with the alpha channel that the source has.
    """
    return _in_threads(_encode_as, x.cpu().numpy().transpose(0, 2, 3, 1), sources, suffixes)


def _encode_as(pixels: np.ndarray, source: Fetch, suffix: str) -> tuple[str, bytes]:
    alpha = _alpha_of(source, pixels)
    fits = can_hold(suffix, pixels.shape[:2], deep=pixels.dtype == np.uint16, alpha=alpha is not None)
    suffix = suffix if fits else ".png"
    return suffix, encode(pixels, alpha, suffix)


def encode_like(pixels: np.ndarray, source: Fetch, suffix: str = ".png") -> bytes:
    """[H,W,3] as an image file with the alpha channel of its source. UserError where the source was changed."""
    return encode(pixels, _alpha_of(source, pixels), suffix)


def _alpha_of(source: Fetch, pixels: np.ndarray) -> np.ndarray | None:
    alpha = decode_alpha(source(), "the source")
    if alpha is not None and (alpha.shape, alpha.dtype) != (pixels.shape[:2], pixels.dtype):
        height, width = alpha.shape
        raise UserError(f"the source of a refined image is now {width}x{height} {alpha.dtype}; {_CHANGED}")
    return alpha


def _fetch_pixels(size: tuple[int, int], depth: Depth, fetch: Fetch, name: str) -> np.ndarray:
    pixels = decode(fetch(), name)
    found = _seen(pixels)
    if found != (size, depth):
        raise UserError(f"{name}: is now {found.size[1]}x{found.size[0]} {found.depth}; {_CHANGED}")
    return pixels


def _in_threads(work: Callable[..., T], *columns: Sequence[Any] | np.ndarray) -> list[T]:
    """[work(*row) for row in zip(*columns)], in pieces long enough that small images do not drown in their handling."""
    count = len(columns[0])
    step = -(-count // _THREADS) or 1
    pieces = [[column[start : start + step] for column in columns] for start in range(0, count, step)]
    with ThreadPoolExecutor(_THREADS) as pool:
        done = pool.map(lambda piece: [work(*row) for row in zip(*piece, strict=True)], pieces)
        return [result for results in done for result in results]


class Seen(NamedTuple):
    """What decoding an image showed."""

    size: tuple[int, int]  # height, width
    depth: Depth


class Survey(NamedTuple):
    """What decoding every image of the sample once showed."""

    kept: np.ndarray  # int64, numbers of the readable images, which ascend
    places: np.ndarray  # int64, the place of each in the order of the sample
    seen: list[Seen]  # one for each of these; equal ones are one object
    skipped: tuple[str, ...]

    def one_kind(self, path: Path, names: Sequence[str]) -> Seen:
        """The size and depth of all images; UserError, one line, where they differ."""
        first = self.seen[0]
        other = next((i for i, seen in enumerate(self.seen) if seen is not first), None)
        if other is None:
            return first
        raise UserError(
            difference(path, names[int(self.kept[0])], first, names[int(self.kept[other])], self.seen[other])
        )


def survey(
    path: Path,
    names: Sequence[str],
    encoded: Encoded,
    on_error: OnError,
    *,
    between: str = ": ",  # path and name, in messages
    labels: np.ndarray | None = None,
    sample: Sample = ALL,
) -> Survey:
    """Decodes every image of the sample once and keeps no pixels.

    UserError, one line, where one cannot be decoded; with on_error="skip" the next one comes in for it, and the error
    is that none can.
    """
    order, wanted = sample.order(labels), sample.size(len(names))
    in_turn = None if wanted == len(names) else order  # of all images, their own order is cheaper to read
    end = len(names) if on_error == "skip" else wanted
    kept, start = array("q"), 0
    problems: list[str] = []
    seen: list[Seen] = []
    kinds: dict[Seen, Seen] = {}
    while start < end and len(kept) < wanted:
        stop = min(end, start + min(_SURVEYED_AT_ONCE, wanted - len(kept)))
        numbers = range(start, stop) if in_turn is None else np.sort(in_turn[start:stop]).tolist()
        work = partial(_inspected, f"{path}{between}")
        for i, found in zip(numbers, _in_threads(work, encoded(numbers), [names[i] for i in numbers]), strict=True):
            if isinstance(found, str):
                problems.append(found)
            else:
                kept.append(i)
                seen.append(kinds.setdefault(found, found))
        start = stop
    if not kept or (problems and on_error == "fail"):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; mend or remove it, or pass --on-error skip")
    numbers = np.array(kept, np.int64)
    if in_turn is not None:
        by_number = numbers.argsort()
        numbers, seen = numbers[by_number], [seen[i] for i in by_number.tolist()]
    return Survey(numbers, ranks(numbers, order), seen, tuple(problems))


def _inspected(place: str, fetch: Fetch, name: str) -> Seen | str:
    """Size and depth of an image, or what is wrong with it."""
    try:
        return _seen(decode(fetch(), f"{place}{name}"))
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{place}{name}: cannot be read ({error.strerror or error})"


def _seen(pixels: np.ndarray) -> Seen:
    height, width, _ = pixels.shape
    return Seen((height, width), "uint16" if pixels.dtype == np.uint16 else "uint8")


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
