"""What a path means: the kind of image set that lies there, or the files that a pattern names."""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

import numpy as np

from robust_models.errors import DECODING_FAILURES, UserError
from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.folder import open_file, open_folder
from robust_models.images.folder_files import check_regular, files_below, find_files, sorted_naturally
from robust_models.images.image_set import ImageGroups, ImageSet, OnError, Opened, Sample, Split
from robust_models.images.npy import open_npy
from robust_models.images.npz import open_npz
from robust_models.images.parquet import open_parquet
from robust_models.images.pt import open_pt
from robust_models.images.tar import open_tar
from robust_models.runtime.distributed import print_once
from robust_models.runtime.files import located

_HOLDERS = frozenset({".tar", ".parquet", ".arrow"})  # of many images in one file
KNOWN = "a folder of images, .npz, .npy, .pt, WebDataset .tar shards, Hugging Face .parquet files, or one image file"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def open_images(
    path: Path | str, *, on_error: OnError = "fail", split: Split = "train", limit: int | None = None
) -> ImageSet:
    """The image set at `path`, which may be

    - a folder of image files, whose class subfolders (if every image is in one) give the labels; links are followed,
      hidden and system files ignored, other files counted; or one image file, a set of one;
    - an `.npz` with `arr_0` [N,H,W,3] and, if any, labels `arr_1` [N];
    - an `.npy` [N,H,W,3] or [N,3,H,W]; a `.pt` with such a tensor, or with a dict of `images` and `labels`, from which
      no code is run;
    - WebDataset shards: a `.tar`, a folder of them, or a pattern such as `shards/{000..009}.tar`;
    - a Hugging Face dataset on disk: a `.parquet` file or a folder of them;
    - bundled:NAME, one of the small sets that come with the package.

    Arrays may also be grey, RGBA, channels first, or have other names (images, data, x_train; `split` chooses among
    parts): `about` and `notes` say what was understood, and the notes are printed once to stderr.

    Content decides, not the suffix. Memory does not grow with the pixels. Everything is checked before anything is
    used: files are decoded, checksums and float ranges read, once, here, so that a broken image, mixed sizes or floats
    outside [0,1] raise UserError at once (or, with on_error="skip", an undecodable file is listed in `skipped`). Sizes
    are checked from headers: at most max_pixels() for an image, max_bytes() for what must be in memory at once.
    limit: only the first so many images; the others are not decoded, and so not checked.

    Depth stays: 8 bits, 16 bits (PNG and arrays), floats in [0,1] (arrays). Files are read upright, as EXIF says. Grey
    images become RGB. Alpha takes no part and is kept: a refined file is written with the alpha channel of its source;
    arrays are written without it.
    """
    return open_image_groups(path, on_error=on_error, split=split, limit=limit).one_set()


def open_image_groups(
    path: Path | str,
    *,
    on_error: OnError = "fail",
    split: Split = "train",
    limit: int | None = None,
    fair: bool = False,
) -> ImageGroups:
    """As `open_images`, but a folder of image files may hold images of any sizes and depths: one set for each.

        groups = open_image_groups("photos")
        with write_image_groups(Path("out"), like=groups) as adds:
            for images, add in zip(groups.sets, adds):
                for part, x in images.batches(16):
                    add(x)

    puts every image back in its own size, under its own name. A path of another kind is one set, as open_images
    gives it. What was passed over, and how an array was understood, is in `notes` and printed once to stderr.

    fair: the first images, and `order`, are those of the set shuffled (always alike) where it lies in the order of its
    classes.
    """
    path = located(path)
    if limit is not None and limit < 1:
        raise UserError(f"limit: {limit} images of {path}; give 1 or more")
    sets = _opened(path, on_error, split, Sample(limit, fair))
    print_once(sets[0].images.notes)
    _, _, total, labels = sets[0]
    num_classes = 0 if labels is None else int(labels.max()) + 1
    return ImageGroups(
        path, tuple(one.images for one in sets), tuple(one.places for one in sets), total=total, num_classes=num_classes
    )


def is_image_file_or_set(path: Path) -> bool:
    """Whether one image of it, at least, can be read."""
    try:
        _opened(located(path), "skip", "train", Sample(1))
    except UserError:
        return False
    return True


def _opened(path: Path, on_error: OnError, split: Split, sample: Sample) -> list[Opened]:
    if "\0" in str(path):
        raise UserError(f"{path}: a path cannot hold a null byte")
    if path.is_dir():
        return _open_folder(path, on_error, sample)
    if path.exists():
        return [_open_file(path, on_error, split, sample)]
    if _is_pattern(path):
        return [open_tar(path, expand(path), on_error, sample)]
    raise UserError(f"{path}: no such file or folder; give {KNOWN}")


def _open_folder(root: Path, on_error: OnError, sample: Sample) -> list[Opened]:
    found = find_files(root, IMAGE_SUFFIXES | _HOLDERS)
    holders = [file for file in found.files if Path(file).suffix.lower() in _HOLDERS]
    kinds = {Path(file).suffix.lower() for file in holders}
    if not kinds:
        return open_folder(root, found, on_error, sample)
    if len(kinds) > 1 or len(holders) < len(found.files):
        raise UserError(f"{root}: holds {', '.join(sorted(kinds))} files among others; give a folder of one kind")
    if kinds == {".arrow"}:
        raise UserError(f"{root}: Arrow files, as save_to_disk makes them; write parquet: dataset.to_parquet(FILE)")
    files = [root / file for file in holders]
    return [(open_tar if kinds == {".tar"} else open_parquet)(root, files, on_error, sample)]


def _open_file(path: Path, on_error: OnError, split: Split, sample: Sample) -> Opened:
    if not path.is_file():
        check_regular(path)
    with path.open("rb") as file:
        head = file.read(512)
    suffix = path.suffix.lower()
    if head.startswith(b"\x93NUMPY"):
        return open_npy(path, sample)
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return open_parquet(path, [path], on_error, sample)
    if suffix in (".pt", ".pth") or _is_torch_zip(path, head):
        return open_pt(path, split, sample)
    if head.startswith(b"PK") or suffix == ".npz":
        return open_npz(path, split, sample)
    if head[257:262] == b"ustar" or suffix == ".tar":
        return open_tar(path, [path], on_error, sample)
    if suffix == ".npy":
        return open_npy(path, sample)
    if suffix in IMAGE_SUFFIXES:
        return Opened(open_file(path), np.arange(1), 1, None)
    raise UserError(f"{path}: of no known kind; give {KNOWN}")


def _is_torch_zip(path: Path, head: bytes) -> bool:
    if not (head.startswith(b"PK") and zipfile.is_zipfile(path)):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())
    except DECODING_FAILURES:
        return False


def _is_pattern(path: Path) -> bool:
    return bool(_BRACES.search(str(path))) or has_magic(str(path))


def expand(path: Path) -> list[Path]:
    """The files that a pattern names, in its order (matches of * in natural order). UserError where one is missing."""
    found: list[Path] = []
    for name in _without_braces(str(path)):
        matches = sorted_naturally(glob(name)) if has_magic(name) else [name]
        found += map(Path, matches)
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing ({len(missing)} of {len(found)} are)")
    if not found:
        raise UserError(f"{path}: no file matches")
    return found


def _without_braces(name: str) -> Iterator[str]:
    """{000..009} counts with its zeros, {a,b} lists; several multiply."""
    braces = _BRACES.search(name)
    if not braces:
        yield name
        return
    if span := _RANGE.fullmatch(braces[1]):
        first, last = span.groups()
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _without_braces(name[: braces.start()] + choice + name[braces.end() :])


def fingerprint(path: Path) -> str:
    """Names, sizes and times of change of the file, of all files below, or of those that a pattern names.

    So changed content is noticed without reading it. The digests are summed: their order is free, and memory does not
    grow with the number of files.
    """
    total, path = 0, located(path)
    for file in _files(path):
        status = file.stat() if file.exists() else file.lstat()  # a link to nothing
        fields = f"{os.path.relpath(file, path)}\n{status.st_size}\n{status.st_mtime_ns}"
        digest = hashlib.sha256(os.fsencode(fields)).digest()
        total += int.from_bytes(digest[:16])
    return f"{total % 2**64:016x}"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (path / file for file in files_below(path))
    elif path.exists():
        yield path
    else:
        yield from expand(path)
