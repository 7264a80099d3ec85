"""Which kind of image set a path is, by what lies there; the kind's own module opens it."""

import zipfile
from pathlib import Path

from robust_models.errors import UserError
from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.folder import files_below, open_folder, sorted_naturally
from robust_models.images.image_set import ImageSet, OnError
from robust_models.images.npy import open_npy
from robust_models.images.npz import open_npz
from robust_models.images.parquet import open_parquet
from robust_models.images.patterns import expand, is_pattern
from robust_models.images.pt import open_pt
from robust_models.images.tar import open_tar

KNOWN = "a folder of images, .npz, .npy, .pt, WebDataset .tar shards, or Hugging Face .parquet files"


def open_images(path: Path | str, *, on_error: OnError = "fail") -> ImageSet:
    """The image set at `path`, which may be

    - a folder of image files, whose class subfolders (if every image lies in one) give the labels;
    - an `.npz` with `arr_0` [N,H,W,3] and, if any, labels `arr_1` [N];
    - an `.npy` [N,H,W,3] or [N,3,H,W]; a `.pt` with such a tensor, or with a dict of `images` and `labels`, from which
      no code is run; `about` says which layout was seen;
    - WebDataset shards: a `.tar`, a folder of them, or a pattern such as `shards/{000..009}.tar`;
    - a Hugging Face dataset on disk: a `.parquet` file or a folder of them.

    Content decides, not the suffix. Memory does not grow with the pixels. Everything is checked before anything is
    used: files are decoded, checksums and float ranges read, once, here, so that a broken image, mixed sizes or floats
    outside [0,1] raise UserError at once (or, with on_error="skip", an undecodable file lands in `skipped`).

    Depth stays: 8 bits, 16 bits (PNG and arrays), floats in [0,1] (arrays). Grey images become RGB. Alpha takes no part
    and is kept: the refined image is written with the alpha channel of its source, except into an `.npz`.
    """
    path = Path(path)
    if not path.exists():
        if is_pattern(path):
            return open_tar(path, expand(path), on_error)
        raise UserError(f"{path}: no such file or folder; give {KNOWN}")
    return _open_folder(path, on_error) if path.is_dir() else _open_file(path, on_error)


def _open_folder(root: Path, on_error: OnError) -> ImageSet:
    holders = sorted_naturally(files_below(root, frozenset({".tar", ".parquet", ".arrow"})))
    kinds = {Path(file).suffix.lower() for file in holders}
    if not kinds:
        return open_folder(root, on_error)
    if len(kinds) > 1 or next(files_below(root, IMAGE_SUFFIXES), None) is not None:
        raise UserError(f"{root}: holds {', '.join(sorted(kinds))} files among others; give a folder of one kind")
    if kinds == {".arrow"}:
        raise UserError(f"{root}: Arrow files, as save_to_disk makes them; write parquet: dataset.to_parquet(FILE)")
    files = [root / file for file in holders]
    return open_tar(root, files, on_error) if kinds == {".tar"} else open_parquet(root, files, on_error)


def _open_file(path: Path, on_error: OnError) -> ImageSet:
    with path.open("rb") as file:
        head = file.read(512)
    suffix = path.suffix.lower()
    if head.startswith(b"\x93NUMPY"):
        return open_npy(path)
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return open_parquet(path, [path], on_error)
    if suffix in (".pt", ".pth") or _is_torch_zip(path, head):
        return open_pt(path)
    if head.startswith(b"PK") or suffix == ".npz":
        return open_npz(path)
    if head[257:262] == b"ustar" or suffix == ".tar":
        return open_tar(path, [path], on_error)
    if suffix == ".npy":
        return open_npy(path)
    what = "one image file; put it into a folder" if suffix in IMAGE_SUFFIXES else f"of no known kind; give {KNOWN}"
    raise UserError(f"{path}: {what}")


def _is_torch_zip(path: Path, head: bytes) -> bool:
    if not (head.startswith(b"PK") and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())
