"""A folder of image files, nested at will; class subfolders give the labels. And one image file, as a set of one."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.codec import LISTED_SUFFIXES, LOSSY_SUFFIXES, WRITTEN_SUFFIXES, can_hold, decode_alpha
from robust_models.images.encoded import Encoded, EncodedImages, Fetch, Seen, encode_each, encode_like, survey
from robust_models.images.folder_files import FoundFiles, Packed, Stems, read_file, sorted_naturally, stem
from robust_models.images.image_set import Add, OnError, Opened, Sample, SaveAs


@dataclass(frozen=True, kw_only=True)
class FolderImages(EncodedImages):
    """The image files below a folder, or those of one size among them."""

    files: Sequence[str]  # relative to the folder
    save_as: SaveAs = "source"  # a refined copy

    kind = "folder"
    suffixes = ()

    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        """The files' contents."""
        return _fetches(self.path, self.files)(range(start, stop))

    def shown_names(self, start: int, stop: int) -> list[str]:
        """The files' paths."""
        return [f"{self.path}/{file}" for file in self.files[start:stop]]

    def file_name(self, i: int) -> str:
        """Image i's file, relative to the folder."""
        return self.files[i]

    @contextmanager
    def writer(self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None) -> Iterator[Add]:
        """Files of the same relative names, which keep class subfolders and so the labels, each in its own format.

        Where that is not written here or cannot hold the image, and with save_as="png", PNG.
        """
        written = 0

        def add(x: Tensor) -> None:
            nonlocal written
            stop = written + len(x)
            suffixes = [self._suffix(i) for i in range(written, stop)]
            files = encode_each(x, self.encoded(written, stop), suffixes)
            for i, (suffix, content) in enumerate(files, written):
                file = out / self._saved_name(i, suffix)
                file.parent.mkdir(parents=True, exist_ok=True)
                _write(file, content)
            written = stop

        yield add

    def is_lossy(self, out: Path, i: int) -> bool:
        return self._suffix(i) in LOSSY_SUFFIXES and (out / self.files[i]).is_file()

    def _suffix(self, i: int) -> str:
        own = os.path.splitext(self.files[i])[1].lower()
        return own if own in WRITTEN_SUFFIXES and self.save_as == "source" else ".png"

    def _saved_name(self, i: int, suffix: str) -> str:
        if os.path.splitext(self.files[i])[1].lower() == suffix:
            return self.files[i]
        name = f"{self.names[i]}{suffix}"
        while os.path.lexists(self.path / name):  # that of another image
            name += suffix
        return name


@dataclass(frozen=True, kw_only=True)
class FileImages(EncodedImages):
    """One image file as a set of one: its refined copy is an image file, of the format that its suffix names."""

    has_alpha: bool

    kind = "image file"
    suffixes = WRITTEN_SUFFIXES

    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        """The file's content."""
        return [partial(read_file, self.path)][start:stop]

    def holds(self, suffix: str) -> bool:
        """Whether a file with this suffix can hold the image with its 16 bits and its alpha channel."""
        return suffix in self.suffixes and can_hold(
            suffix, self.size, deep=self.depth == "uint16", alpha=self.has_alpha
        )

    def is_lossy(self, out: Path, i: int) -> bool:
        return out.suffix.lower() in LOSSY_SUFFIXES

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        """The image in the format of the suffix of `out`."""
        return self.writer_of(out.suffix.lower(), out)

    @contextmanager
    def writer_of(self, suffix: str, out: Path) -> Iterator[Add]:
        """The image in the format that `suffix` stands for, whatever `out` is called."""

        def add(x: Tensor) -> None:
            pixels = x.cpu().numpy().transpose(0, 2, 3, 1)
            out.write_bytes(encode_like(pixels[0], partial(read_file, self.path), suffix))

        yield add


def open_folder(root: Path, found: FoundFiles, on_error: OnError, sample: Sample) -> list[Opened]:
    """The images in `found` (of find_files) by size and depth.

    Sets are in the order of their first images. Labels and names are those of the whole folder. Every image of the
    sample is decoded once here. UserError where there is none, or one cannot be decoded (with on_error="skip", it is
    left out).
    """
    check_any(root, found)
    note, files, total = found.note(root), Packed(found.files), len(found.files)
    class_names, labels = _labels_from_subfolders(files)
    seen = survey(root, files, _fetches(root, files), on_error, between="/", labels=labels, sample=sample)
    own_labels = labels
    if len(seen.kept) < total:
        files = Packed(files[i] for i in seen.kept)
        own_labels = None if labels is None else labels[seen.kept]
    # Hashes, not the names again: equal ones would only show that some suffixes must stay.
    stems = np.unique(np.fromiter((hash(stem(file)) for file in files), np.int64, len(files)))
    places: dict[Seen, list[int]] = {}
    for i, kind in enumerate(seen.seen):
        places.setdefault(kind, []).append(i)
    sets: list[Opened] = []
    for kind, members in places.items():
        own = files if len(places) == 1 else Packed(files[i] for i in members)
        images = FolderImages(
            root,
            Stems(own) if len(stems) == len(files) else own,
            kind.size,
            None if own_labels is None else own_labels[members],
            class_names,
            seen.skipped,
            depth=kind.depth,
            about=f"folder, {kind.depth}",
            notes=() if note is None else (note,),
            files=own,
        )
        sets.append(Opened(images, seen.places[members], total, labels))
    return sets


def check_any(root: Path, found: FoundFiles) -> None:
    """UserError where no image file was found below `root`."""
    if not found.files:
        passed_over = f"; {sum(found.passed_over.values()):,} other files" if found.passed_over else ""
        raise UserError(f"{root}: no images here or below (looked for {LISTED_SUFFIXES}{passed_over})")


def open_file(path: Path) -> FileImages:
    """One image file. UserError where it cannot be decoded."""
    seen = survey(path.parent, [path.name], lambda numbers: [partial(read_file, path)], "fail", between="/").seen[0]
    has_alpha = decode_alpha(read_file(path), str(path)) is not None
    about = f"one image file, {seen.depth}"
    return FileImages(path, [path.stem], seen.size, None, None, (), seen.depth, about, has_alpha=has_alpha)


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(f"{file}: the name is too long once .png is behind it; shorten it") from error


def _fetches(root: Path, files: Sequence[str]) -> Encoded:
    return lambda numbers: [partial(read_file, os.path.join(root, files[i])) for i in numbers]


def _labels_from_subfolders(files: Sequence[str]) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    if any("/" not in file for file in files):
        return None, None
    class_names = tuple(sorted_naturally({_top(file) for file in files}))
    index = {name: i for i, name in enumerate(class_names)}
    return class_names, np.fromiter((index[_top(file)] for file in files), np.int64, len(files))


def _top(file: str) -> str:
    return file.partition("/")[0]
