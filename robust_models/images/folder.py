"""A folder of image files, nested at will; class subfolders give the labels."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.encoded import EncodedImages, Fetch, survey
from robust_models.images.image_set import Add, OnError, Packed, Stems, stem


@dataclass(frozen=True, kw_only=True)
class FolderImages(EncodedImages):
    files: Sequence[str]  # relative to the folder

    kind = "folder"
    suffixes = ()

    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        return _fetches(self.path, self.files)(start, stop)

    @contextmanager
    def writer(self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None) -> Iterator[Add]:
        """PNG files of the same relative names; so class subfolders remain, which are the labels."""
        written = 0

        def add(x: Tensor) -> None:
            nonlocal written
            for name, png in zip(self.names[written : written + len(x)], self.as_png(written, x), strict=True):
                file = out / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png)
            written += len(x)

        yield add


def open_folder(root: Path, on_error: OnError) -> FolderImages:
    files = Packed(sorted_naturally(files_below(root, IMAGE_SUFFIXES)))
    if not files:
        raise UserError(f"{root}: no images here or below (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    found = survey(root, files, _fetches(root, files), on_error, between="/")
    if found.skipped:
        files = Packed(files[i] for i in found.kept)
    class_names, labels = _labels_from_subfolders(files)
    # Hashes, not the names again: equal ones would only show that some suffixes must stay.
    stems = np.unique(np.fromiter((hash(stem(file)) for file in files), np.int64, len(files)))
    names = Stems(files) if len(stems) == len(files) else files
    return FolderImages(
        root,
        names,
        found.size,
        labels,
        class_names,
        found.skipped,
        depth=found.depth,
        about=f"folder, {found.depth}",
        files=files,
    )


def _fetches(root: Path, files: Sequence[str]) -> Callable[[int, int], Sequence[Fetch]]:
    return lambda start, stop: [partial(_content, os.path.join(root, file)) for file in files[start:stop]]


def _content(file: str) -> bytes:
    with open(file, "rb") as stream:
        return stream.read()


def files_below(root: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Relative paths of all files with these suffixes (in small letters), in no order."""
    for folder, _, files in os.walk(root):
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + file for file in files if os.path.splitext(file)[1].lower() in suffixes)


def sorted_naturally(names: Iterator[str]) -> list[str]:
    """2.png before 10.png."""
    return sorted(sorted(names), key=_natural_key)


def _natural_key(name: str) -> str:
    """Every number as the count of its digits and then the digits, below all text."""
    return re.sub(r"0*([0-9]+)", lambda number: f"\0{len(number[1]):04d}{number[1]}", name)


def _labels_from_subfolders(files: Sequence[str]) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    if any("/" not in file for file in files):
        return None, None
    class_names = tuple(sorted_naturally(iter({_top(file) for file in files})))
    index = {name: i for i, name in enumerate(class_names)}
    return class_names, np.fromiter((index[_top(file)] for file in files), np.int64, len(files))


def _top(file: str) -> str:
    return file.partition("/")[0]
