"""Image sets on disk: an `.npz` (guided-diffusion's layout) or a folder of files; read in batches, written whole.

In memory a batch is NCHW RGB, uint8 (`x_u8`) or float32 in [0,1]. On disk it is uint8, rounded half to even.
"""

import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robust_models.errors import UserError
from robust_models.runtime.files import whole_file, whole_folder

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
OnError = Literal["fail", "skip"]
Warn = Callable[[str], None]


def to_float(x_u8: Tensor) -> Tensor:
    """uint8 -> float32 in [0,1]."""
    return x_u8.float() / 255


def to_u8(x: Tensor) -> Tensor:
    """Float [0,1] -> uint8, clipped and rounded half to even (truncating would shift every image by half a level)."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class ImageSet(ABC):
    """N images of one size, read on demand; labels are indices into class_names where those are known."""

    path: Path
    names: Sequence[str]  # one relative file name (without suffix) per image
    size: tuple[int, int]  # height, width in pixels
    labels: np.ndarray | None  # int64 [N]
    class_names: tuple[str, ...] | None
    skipped: tuple[str, ...] = ()  # what could not be read, with on_error="skip"

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1 as uint8 [n,3,H,W]."""

    def batches(self, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
        """(slice into the set, x_u8 [n,3,H,W]) over the whole set, in order."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield slice(start, stop), self.read(start, stop)


@dataclass(frozen=True, kw_only=True)
class NpzImages(ImageSet):
    pixels: np.ndarray  # uint8 [N,H,W,3]

    def read(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.pixels[start:stop].transpose(0, 3, 1, 2)))


@dataclass(frozen=True, kw_only=True)
class FolderImages(ImageSet):
    files: Sequence[Path]

    def read(self, start: int, stop: int) -> Tensor:
        with ThreadPoolExecutor(8) as pool:
            pixels = np.stack(list(pool.map(_decode, self.files[start:stop])))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def open_images(path: Path | str, *, on_error: OnError = "fail") -> ImageSet:
    """The image set at `path`: an `.npz` with `arr_0` [N,H,W,3] uint8 (optional `arr_1` [N] labels), or a folder.

    A folder's class subfolders (if every image lies in one) give the labels. Everything is checked before anything is
    used: each file is decoded once here, so that a truncated image or a set of mixed sizes raises UserError at once
    (or, with on_error="skip", the truncated one lands in `skipped`). Grey images become RGB; alpha is dropped.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, on_error)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give an .npz or a folder of images")
    return _open_npz(path)


def _open_npz(path: Path) -> NpzImages:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a readable .npz; make one with numpy.savez(path, arr_0=images), or give a folder")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name in ("arr_0", "arr_1", "class_names")}
            listed = ", ".join(arrays.files) or "nothing"
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: not a readable .npz ({error}); make it anew with numpy.savez") from error
    if "arr_0" not in found:
        raise UserError(f"{path}: no array 'arr_0' (it holds: {listed}); images are expected there as [N,H,W,3] uint8")
    pixels = found["arr_0"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) == 0:
        raise UserError(f"{path}: arr_0 is {pixels.dtype} {list(pixels.shape)}; expected uint8 [N,H,W,3] with N > 0")
    labels = found.get("arr_1")
    if labels is not None:
        if labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; expected integer labels [{len(pixels)}]"
            )
        labels = labels.astype(np.int64)
    class_names = tuple(str(name) for name in found["class_names"]) if "class_names" in found else None
    names = [f"{i:06d}" for i in range(len(pixels))]
    height, width = pixels.shape[1:3]
    return NpzImages(path, names, (height, width), labels, class_names, pixels=pixels)


def _open_folder(root: Path, on_error: OnError) -> FolderImages:
    files = sorted((p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()), key=_natural_key)
    if not files:
        raise UserError(f"{root}: no images here or below (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    with ThreadPoolExecutor(8) as pool:
        checked = list(pool.map(_shape_or_problem, files))
    problems = [outcome for outcome in checked if isinstance(outcome, str)]
    good = [(file, found) for file, found in zip(files, checked, strict=True) if not isinstance(found, str)]
    if problems and (on_error == "fail" or not good):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; mend or remove it, or pass --on-error skip")
    first, size = good[0]
    for file, other in good:
        if other != size:
            raise UserError(
                f"{root}: mixed sizes: {first.relative_to(root)} is {size[1]}x{size[0]}, {file.relative_to(root)} is "
                f"{other[1]}x{other[0]}; resize them to one size first"
            )
    kept = tuple(file for file, _ in good)
    class_names, labels = _labels_from_subfolders(root, kept)
    stems = [file.relative_to(root).with_suffix("").as_posix() for file in kept]
    names = stems if len(set(stems)) == len(stems) else [file.relative_to(root).as_posix() for file in kept]
    return FolderImages(root, names, size, labels, class_names, tuple(problems), files=kept)


def _labels_from_subfolders(root: Path, files: Sequence[Path]) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    parts = [file.relative_to(root).parts for file in files]
    if any(len(part) < 2 for part in parts):
        return None, None
    class_names = tuple(sorted({part[0] for part in parts}, key=_natural_key))
    index = {name: i for i, name in enumerate(class_names)}
    return class_names, np.array([index[part[0]] for part in parts], dtype=np.int64)


def _natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """2.png before 10.png."""
    pieces = re.split(r"(\d+)", str(path))
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in pieces]


def _shape_or_problem(file: Path) -> tuple[int, int] | str:
    try:
        height, width, _ = _decode(file).shape
    except UserError as error:
        return str(error)
    return height, width


def _decode(file: Path) -> np.ndarray:
    """One file -> uint8 [H,W,3]."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{file}: {image.mode} pixels (more than 8 bits); convert it to 8-bit RGB")
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: cannot be decoded ({error})") from error


Add = Callable[[Tensor], None]


@contextmanager
def write_images(
    out: Path, *, like: ImageSet, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> Iterator[Add]:
    """Gives `add(x_u8 [n,3,H,W])`, to be called batch by batch until len(like) images are there; then the set stands at
    `out`, of the same kind as `like` (an `.npz` as well where `out` ends so). On an error nothing is left there.
    """
    if isinstance(like, NpzImages) or out.suffix == ".npz":
        with whole_file(out) as partial, _npz_writer(partial, (len(like), *like.size, 3), labels, class_names) as add:
            yield add
    else:
        with whole_folder(out) as partial:
            yield _folder_writer(partial, like.names)


def write_npz(
    out: Path, x_u8: Tensor, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> None:
    """A whole image set [N,3,H,W] as one `.npz`, written at once or not at all."""
    n, _, height, width = x_u8.shape
    with whole_file(out) as partial, _npz_writer(partial, (n, height, width, 3), labels, class_names) as add:
        add(x_u8)


@contextmanager
def _npz_writer(
    file: Path, shape: tuple[int, ...], labels: np.ndarray | None, class_names: Sequence[str] | None
) -> Iterator[Add]:
    """Streams arr_0 into the archive, so that memory does not grow with the number of images."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    extra = {"arr_1": labels, "class_names": None if class_names is None else np.array(list(class_names))}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in extra.items():
            if array is not None:
                with archive.open(_fixed_date(f"{name}.npy"), "w") as stream:
                    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
        with archive.open(_fixed_date("arr_0.npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            written = 0

            def add(x_u8: Tensor) -> None:
                nonlocal written
                stream.write(np.ascontiguousarray(x_u8.cpu().numpy().transpose(0, 2, 3, 1)).tobytes())
                written += len(x_u8)

            yield add
            assert written == shape[0], f"{written} of {shape[0]} images written"


def _fixed_date(name: str) -> zipfile.ZipInfo:
    """Equal images give equal bytes: no clock in the archive."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _folder_writer(root: Path, names: Sequence[str]) -> Add:
    remaining = iter(names)

    def add(x_u8: Tensor) -> None:
        for pixels in x_u8.cpu().numpy().transpose(0, 2, 3, 1):
            file = root / f"{next(remaining)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(file)

    return add
