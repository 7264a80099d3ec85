"""One pass of an image set through a network: every part that some metric needs, features computed once."""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from eval.quality.cache import Arrays, StatisticsCache, cache_key
from eval.quality.metric import Part
from robust_models.features import FeatureExtractor
from robust_models.images import ImageSet
from robust_models.metrics import FrechetStatistics, ScoreStatistics
from robust_models.runtime.distributed import Ranks

T = TypeVar("T")
ALONE = Ranks()
MOST_ROW_BYTES = 512 << 20  # of one set's features, to be kept: 65,536 images in Inception's


@dataclass
class Collected:
    """What was asked for of a set; the rest is None. Only `rows` grows with the number of images."""

    frechet: FrechetStatistics | None = None
    spatial: FrechetStatistics | None = None  # of the sFID's features
    score: ScoreStatistics | None = None
    rows: Tensor | None = None  # features [N,D] float32 on the CPU, in the set's order
    digests: bytes = field(default=b"", repr=False)  # 32 for each image, of its pixels

    def merge(self, other: "Collected") -> None:
        """Adds the images that come after these."""
        for mine, theirs in ((self.frechet, other.frechet), (self.spatial, other.spatial), (self.score, other.score)):
            if mine is not None:
                mine.merge(theirs)  # type: ignore[arg-type]
        if self.rows is not None and other.rows is not None:
            self.rows = torch.cat([self.rows, other.rows])
        self.digests += other.digests


def collect(
    images: ImageSet,
    extractor: FeatureExtractor,
    parts: Collection[Part],
    *,
    split: np.ndarray | None = None,
    batch_size: int = 50,
    ranks: Ranks = ALONE,
    cache: StatisticsCache | None = None,
) -> Collected | None:
    """The parts of a set of uint8 images, on the first rank (None on the others), from the cache where it has them.

    With a cache the features themselves are kept, by the pixels' content, where they are not too large: every other
    metric then comes from them. Ranks take contiguous whole batches, so the network sees the same batches however many
    they are. split: of each image, with the part "score" (see ScoreStatistics). UserError for features that are not
    finite.
    """
    rows_kept = cache is not None and len(images) * extractor.dim * 4 <= MOST_ROW_BYTES
    gathered: set[Part] = {*parts}
    asked: dict[str, object] = {}
    if rows_kept:
        gathered |= {"rows", "spatial"} if extractor.spatial_dim else {"rows"}
    elif cache is not None:
        asked = {"parts": sorted(parts), "split": split is not None and hashlib.sha256(split.tobytes()).hexdigest()}
    key = "" if cache is None else cache_key(extractor, images, **asked)
    known = None
    if cache is not None and ranks.is_first and cache.may_have(key):
        arrays = cache.load(key, content(images, _digests(images, batch_size)))
        known = None if arrays is None else from_arrays(arrays, split)
    if ranks.share(known is not None):
        return known and _completed(known, extractor, parts, split, batch_size)
    collected = _pass(images, extractor, gathered, split, batch_size, ranks)
    every = _gather(ranks, collected)
    if not ranks.is_first:
        return None
    for other in every[1:]:
        collected.merge(other)
    if cache is not None:
        kept = replace(collected, frechet=None, score=None) if rows_kept else collected
        cache.store(key, content(images, collected.digests), as_arrays(kept))
    return collected


def _completed(
    found: Collected, extractor: FeatureExtractor, parts: Collection[Part], split: np.ndarray | None, batch_size: int
) -> Collected:
    """What was found in a cache, with the parts that follow from its rows: the same numbers as of a pass."""
    if found.rows is None:
        return found
    if "frechet" in parts:
        found.frechet = FrechetStatistics.of(found.rows)
    if "score" in parts and split is not None:
        found.score = ScoreStatistics.of(split, extractor.num_classes or 0)
        for i, rows in enumerate(found.rows.split(batch_size)):
            _add_score(found.score, extractor, rows, i * batch_size)
    return found


def _add_score(score: ScoreStatistics, extractor: FeatureExtractor, features: Tensor, first: int) -> None:
    logits = extractor.logits(features)
    assert logits is not None
    score.update(logits, first)


def as_arrays(collected: Collected) -> Arrays:
    """Everything in it but the digests."""
    arrays: Arrays = {}
    for name in ("frechet", "spatial"):
        statistics = getattr(collected, name)
        arrays |= {} if statistics is None else {f"{name}_{k}": v for k, v in statistics.as_arrays().items()}
    if collected.score is not None:
        arrays |= {f"score_{k}": getattr(collected.score, k) for k in ("n", "negentropy", "probs")}
    return arrays if collected.rows is None else {**arrays, "rows": collected.rows.numpy()}


def from_arrays(arrays: Arrays, split: np.ndarray | None) -> Collected:
    """The inverse of as_arrays."""
    of = {
        part: {k.removeprefix(f"{part}_"): v for k, v in arrays.items() if k.startswith(f"{part}_")}
        for part in ("frechet", "spatial", "score")
    }
    found = Collected()
    for name in ("frechet", "spatial"):
        setattr(found, name, FrechetStatistics.from_arrays(of[name]) if of[name] else None)
    if of["score"]:
        assert split is not None
        found.score = ScoreStatistics(split, **of["score"])
    found.rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays else None
    return found


def content(images: ImageSet, digests: bytes) -> str:
    """sha256 of every pixel, in order; the file, its name and its format have no part in it."""
    return hashlib.sha256(repr((images.size, images.depth)).encode() + digests).hexdigest()


def _pass(
    images: ImageSet,
    extractor: FeatureExtractor,
    parts: Collection[Part],
    split: np.ndarray | None,
    batch_size: int,
    ranks: Ranks,
) -> Collected:
    found = Collected(
        frechet=FrechetStatistics(extractor.dim) if "frechet" in parts else None,
        spatial=FrechetStatistics(extractor.spatial_dim or 0) if "spatial" in parts else None,
        score=ScoreStatistics.of(split, extractor.num_classes or 0) if split is not None else None,
    )
    span = _span(len(images), batch_size, ranks)
    rows: list[Tensor] = []
    digests: list[bytes] = []
    with tqdm(total=len(span), desc=images.path.name, unit="img", mininterval=0.5, disable=not ranks.is_first) as bar:
        for first, x_u8 in _ahead(_batches(images, span, batch_size)):
            features, spatial = extractor.with_spatial(x_u8)
            if found.frechet is not None:
                found.frechet.update(features)
            if found.spatial is not None and spatial is not None:
                found.spatial.update(spatial)
            if found.score is not None:
                _add_score(found.score, extractor, features, first)
            if "rows" in parts:
                rows.append(features.cpu())
            digests += _hashes(x_u8)
            bar.update(len(x_u8))
    if "rows" in parts:
        found.rows = torch.cat(rows) if rows else torch.empty(0, extractor.dim)
    found.digests = b"".join(digests)
    return found


def _span(n: int, batch_size: int, ranks: Ranks) -> range:
    """This rank's images: whole batches, but for the last of the set."""
    batches = -(-n // batch_size)
    first, last = (i * batches // ranks.world for i in (ranks.rank, ranks.rank + 1))
    return range(first * batch_size, min(last * batch_size, n))


def _batches(images: ImageSet, span: range, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    for start in span[::batch_size]:
        yield start, images.read(start, min(start + batch_size, span.stop))


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, the next one made in a thread while this one is used."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def _digests(images: ImageSet, batch_size: int) -> bytes:
    return b"".join(digest for _, x_u8 in images.batches(batch_size) for digest in _hashes(x_u8))


def _hashes(x_u8: Tensor) -> list[bytes]:
    return [hashlib.sha256(pixels).digest() for pixels in x_u8.contiguous().numpy()]


def _gather(ranks: Ranks, value: T) -> list[T]:
    """Every rank's value, in order, on the first; [] on the others."""
    ranks.barrier()
    if ranks.world == 1:
        return [value]
    every: list[T] = [value] * ranks.world
    dist.gather_object(value, every if ranks.is_first else None)
    return every if ranks.is_first else []
