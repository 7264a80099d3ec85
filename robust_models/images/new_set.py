"""A set of images that has no source, written whole: of the kind that its suffix names, else a folder."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.arrays import opened_rows
from robust_models.images.codec import IMAGE_SUFFIXES, encode
from robust_models.images.image_set import Add
from robust_models.images.npz import npz_writer
from robust_models.images.open import is_image_file_or_set
from robust_models.images.pt_writer import Placeholder, pt_writer
from robust_models.runtime.files import check_replaces, whole_file, whole_folder

_U8 = np.dtype(np.uint8)


@dataclass(frozen=True)
class NewSet:
    """What is known before its pixels are: N labels and the classes they index, if any, N names, the size in pixels."""

    labels: np.ndarray | None  # int64 [N]
    class_names: Sequence[str] | None  # None where there are no labels
    names: Sequence[str]  # relative paths without suffix, as ImageSet.names
    size: tuple[int, int]  # height, width

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N,H,W,3]."""
        return (len(self.names), *self.size, 3)

    def filed(self, i: int) -> str:
        """The name of image i in a folder: its own, below its class where it has one."""
        name = self.names[i]
        if self.labels is None or self.class_names is None:
            return name
        label = self.class_names[int(self.labels[i])].replace("/", "_")
        return name if name.startswith(f"{label}/") else f"{label}/{name}"


@contextmanager
def write_new_set(out: Path, new: NewSet) -> Iterator[Add]:
    """Gives `add(x_u8 [n,3,H,W])`, to be called until all N images are there; then the set stands at `out`.

    robust_models.open_images reads it, with its labels (an .npy has none). On an error nothing is left there. UserError
    where a folder stands there that is not empty, or a file that is no image set.
    """
    check_replaces(out, is_image_file_or_set, "image set")
    suffix = out.suffix.lower()
    with (whole_file if suffix in WRITERS else whole_folder)(out) as partial, writer_of(suffix)(partial, new) as add:
        yield add


def writer_of(suffix: str) -> "Writer":
    """What writes a new set to a place that ends in `suffix` (in small letters), whatever it is called meanwhile."""
    return WRITERS.get(suffix, _folder)


def check_new_out(out: Path, *, overwrite: bool) -> None:
    """UserError, before any work, where `out` cannot become a set."""
    if out.exists() and not overwrite:
        raise UserError(f"out: {out} exists; remove it, choose another place, or pass --overwrite")
    if out.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"out: {out} is the name of one image; name a folder or a file ending in {', '.join(WRITERS)}")
    in_one_file = out.suffix.lower() in WRITERS
    if out.is_dir() if in_one_file else out.is_file():
        raise UserError(f"out: {out} is a {'folder' if in_one_file else 'file'}; choose another place")


def _npz(file: Path, new: NewSet) -> AbstractContextManager[Add]:
    return npz_writer(file, new.shape, _U8, new.labels, new.class_names)


def _npy(file: Path, new: NewSet) -> AbstractContextManager[Add]:
    return opened_rows(file, new.shape, _U8, channels_first=False)


def _pt(file: Path, new: NewSet) -> AbstractContextManager[Add]:
    n, height, width, _ = new.shape
    images = Placeholder((n, 3, height, width), _U8)
    labelled = {} if new.class_names is None else {"labels": new.labels, "class_names": list(new.class_names)}
    return pt_writer(file, {"images": images, **labelled}, channels_first=True)


@contextmanager
def _folder(root: Path, new: NewSet) -> Iterator[Add]:
    """PNG files, in class subfolders where there are labels."""

    def put(i: int, png: bytes) -> None:
        file = root / f"{new.filed(i)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png)

    yield _each_as_png(put)


@contextmanager
def _tar(file: Path, new: NewSet) -> Iterator[Add]:
    """A WebDataset shard: number.png for each image, and number.cls where there are labels."""
    with tarfile.open(file, "w") as archive:

        def put(i: int, png: bytes) -> None:
            label = [] if new.labels is None else [("cls", str(new.labels[i]).encode())]
            for extension, data in [("png", png), *label]:
                info = tarfile.TarInfo(f"{i:06d}.{extension}")  # no clock: equal images give equal bytes
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]

        yield _each_as_png(put)


@contextmanager
def _parquet(file: Path, new: NewSet) -> Iterator[Add]:
    """As Hugging Face datasets writes images and class labels, if any, a row group for every batch."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise UserError(f'out: parquet needs pyarrow ({error}); pip install "bigroc[parquet]"') from error
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns: dict[str, Any] = {"image": image}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if new.class_names is not None:
        columns["label"] = pyarrow.int64()
        features["label"] = {"names": list(new.class_names), "_type": "ClassLabel"}
    schema = pyarrow.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})
    with ParquetWriter(file, schema) as target:
        rows: list[dict[str, Any]] = []

        def put(i: int, png: bytes) -> None:
            label = {} if new.labels is None else {"label": int(new.labels[i])}
            rows.append({"image": {"bytes": png, "path": f"{new.filed(i)}.png"}, **label})

        append = _each_as_png(put)

        def add(x: Tensor) -> None:
            append(x)
            target.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        yield add


def _each_as_png(put: Callable[[int, bytes], None]) -> Add:
    """`add` for batches that gives each image as (its number, PNG)."""
    written = 0

    def add(x: Tensor) -> None:
        nonlocal written
        for pixels in x.numpy().transpose(0, 2, 3, 1):
            put(written, encode(pixels))
            written += 1

    return add


Writer = Callable[[Path, NewSet], AbstractContextManager[Add]]
WRITERS: dict[str, Writer] = {
    ".npz": _npz,
    ".npy": _npy,
    ".pt": _pt,
    ".pth": _pt,
    ".tar": _tar,
    ".parquet": _parquet,
}
