"""Hugging Face datasets on disk: parquet files with a column of encoded images, by way of pyarrow.

The column is a struct of `bytes` and `path` (the Image feature) or binary; a `label` column of integers gives the
labels, and the features that `datasets` writes into the schema give the names of the classes.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.encoded import EncodedImages, Fetch, encode_all, feeding, survey
from robust_models.images.forward import Forward
from robust_models.images.image_set import ALL, Add, Numbered, OnError, Opened, Sample
from robust_models.images.parquet_schema import Columns, find_columns, opened_file, readable
from robust_models.images.pixels import max_bytes, too_large

_MAX_RATIO = 4  # of the bytes in memory to those in the file
_ROWS_AT_ONCE = 100  # what `datasets` puts into a row group of images


@dataclass(frozen=True, kw_only=True)
class ParquetImages(EncodedImages):
    """The images of a column of parquet files."""

    files: tuple[Path, ...]
    columns: Columns
    rows: np.ndarray  # int64 [N], each image's row, counted through all files
    stream: Forward[bytes | None]

    kind = "parquet"
    suffixes = (".parquet",)

    @property
    def in_one_file(self) -> bool:
        return self.files == (self.path,)

    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        return _fetches(self.path, self.stream, self.rows[start:stop])

    @contextmanager
    def writer(self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None) -> Iterator[Add]:
        """Files of the same names and schema; the image column holds PNG, all other columns are as they were."""
        with feeding(_rewritten(self, out)) as give:

            def add(x: Tensor) -> None:
                for pixels in x.cpu().numpy():
                    give(pixels)

            yield add


def open_parquet(path: Path, files: Sequence[Path], on_error: OnError, sample: Sample = ALL) -> Opened:
    """The set in `files`, which `path` names; every image of the sample is decoded once here, and none kept."""
    files = tuple(files)
    columns = find_columns(files)
    groups = _row_groups(files)
    if not groups.size:
        raise UserError(f"{path}: no rows")
    firsts, count = groups[:, 0], int(groups[-1, 0] + groups[-1, 3])
    labels = None if columns.label is None else _labels(files, columns.label)
    stream = Forward(
        landing=lambda row: int(firsts[np.searchsorted(firsts, row, "right") - 1]),
        begin=lambda row: _encoded_from(files, columns, *groups[np.searchsorted(firsts, row), 1:3].tolist()),
    )
    encoded = partial(_each_fetched, path, stream)
    found = survey(path, Numbered(count), encoded, on_error, labels=labels, sample=sample)
    seen = found.one_kind(path, Numbered(count))
    files = files[: int(groups[np.searchsorted(firsts, found.kept[-1], "right") - 1, 1]) + 1]
    images = ParquetImages(
        path,
        Numbered(len(found.kept)),
        seen.size,
        None if labels is None else labels[found.kept],
        columns.class_names,
        found.skipped,
        depth=seen.depth,
        about=f"{len(files)} parquet file{'s' if len(files) > 1 else ''}, column {columns.image!r}, {seen.depth}",
        files=files,
        columns=columns,
        rows=found.kept,
        stream=stream,
    )
    return Opened(images, found.places, count, labels)


def _row_groups(files: Sequence[Path]) -> np.ndarray:
    """int64 [groups,4]: the first row of each (counted through all files), its file, its number there, its rows."""
    groups: list[tuple[int, int, int, int]] = []
    first = 0
    for number, file in enumerate(files):
        with opened_file(file) as source, readable(file):
            for group in range(source.metadata.num_row_groups):
                found = source.metadata.row_group(group)
                rows = found.num_rows
                _check_sizes(file, found)
                if rows:
                    groups.append((first, number, group, rows))
                first += rows
    return np.array(groups, np.int64)


def _check_sizes(file: Path, group: Any) -> None:
    """UserError where a row group would inflate far beyond the file: encoded images hardly compress."""
    inflated, limit = max(group.total_byte_size, 8 * group.num_rows), max_bytes()
    if inflated > max(limit, _MAX_RATIO * file.stat().st_size):
        raise UserError(too_large(f"{file}: a row group of {group.num_rows:,} rows, {inflated:,} bytes", inflated))


def _labels(files: Sequence[Path], column: str) -> np.ndarray:
    parts: list[np.ndarray] = []
    for file in files:
        with opened_file(file) as source, readable(file):
            found = source.read(columns=[column]).column(0)
        if found.null_count:
            raise UserError(f"{file}: {len(found)} images but {len(found) - found.null_count} labels in {column!r}")
        parts.append(found.to_numpy().astype(np.int64))
    return np.concatenate(parts)


def _encoded_from(files: Sequence[Path], columns: Columns, number: int, group: int) -> Iterator[bytes | None]:
    """The encoded images from the start of a row group on, through all files after it."""
    for file in files[number:]:
        with opened_file(file) as source, readable(file):
            groups = range(group, source.metadata.num_row_groups)
            for batch in source.iter_batches(_ROWS_AT_ONCE, groups, columns=[columns.encoded]):
                yield from columns.encoded_in(batch.column(0)).to_pylist()
        group = 0


def _fetches(path: Path, stream: Forward[bytes | None], rows: np.ndarray) -> Sequence[Fetch]:
    """The images at these rows, which ascend."""
    first, last = int(rows[0]), int(rows[-1])
    encoded = stream(first, last + 1)
    return [partial(_present, encoded[row - first], path, row) for row in rows.tolist()]


def _each_fetched(path: Path, stream: Forward[bytes | None], rows: Sequence[int]) -> list[Fetch]:
    """As _fetches, of rows that may lie far apart: what lies between them is not held in memory."""
    runs = np.split(np.array(rows), np.flatnonzero(np.diff(rows) != 1) + 1)
    return [fetch for run in runs for fetch in _fetches(path, stream, run)]


def _present(encoded: bytes | None, path: Path, row: int) -> bytes:
    if encoded and len(encoded) > max_bytes():
        raise UserError(too_large(f"{path}: row {row} holds {len(encoded):,} bytes", len(encoded)))
    if not encoded:
        raise UserError(f"{path}: row {row} has no image bytes, perhaps a path only; store the images themselves")
    return encoded


def _rewritten(images: ParquetImages, out: Path) -> Generator[None, np.ndarray, None]:
    """Copies some rows at a time and asks for each image's pixels in turn; rows skipped in reading are left out."""
    from pyarrow.parquet import ParquetWriter

    first = 0
    for file in images.files:
        with opened_file(file) as source, ParquetWriter(_place(images, file, out), source.schema_arrow) as target:
            for batch in _batches(file, source):
                begin, end = np.searchsorted(images.rows, (first, first + batch.num_rows)).tolist()
                pixels: list[np.ndarray] = []
                for _ in range(begin, end):
                    pixels.append((yield))
                if pixels:
                    kept = batch.take(images.rows[begin:end] - first)
                    target.write_batch(_with_images(kept, images.columns, np.stack(pixels)))
                first += batch.num_rows


def _batches(file: Path, source: Any) -> Iterator[Any]:
    """All columns, some rows at a time; what fails while they are read is the file's fault, not the writer's."""
    batches = source.iter_batches(_ROWS_AT_ONCE)
    while True:
        with readable(file):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _with_images(batch: Any, columns: Columns, pixels: np.ndarray) -> Any:
    index = batch.schema.get_field_index(columns.image)
    column = batch.column(index)
    sources = [partial(bytes, encoded) for encoded in columns.encoded_in(column).to_pylist()]
    return batch.set_column(index, batch.schema.field(index), columns.replaced(column, encode_all(pixels, sources)))


def _place(images: ParquetImages, file: Path, out: Path) -> Path:
    if images.in_one_file:
        return out
    place = out / file.relative_to(images.path)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
