"""`.pt`: what torch.save made of a tensor of images, or of a dict of `images`, `labels` and `class_names`."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.arrays import ArrayImages, check_labels, choose_arrays, describe, pick
from robust_models.images.image_set import ALL, Add, Opened, Sample, Split
from robust_models.images.pixels import check_range, max_bytes, too_large
from robust_models.images.pt_reader import Place, read_places
from robust_models.images.pt_writer import Placeholder, pt_writer


@dataclass(frozen=True, kw_only=True)
class PtImages(ArrayImages):
    """The images of a tensor in a .pt file, with labels and class names where it has them."""

    bare: bool  # a tensor, not a dict

    kind = "pt"
    suffixes = (".pt", ".pth")

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        """A tensor where that came and there are no labels, else a dict."""
        images = Placeholder(self.shape, self.stored)
        content: Any = images
        if not self.bare or labels is not None:
            named = {"labels": labels, "class_names": None if class_names is None else list(class_names)}
            content = {"images": images, **{key: value for key, value in named.items() if value is not None}}
        return pt_writer(out, content, channels_first=self.channels_first)


def open_pt(path: Path, split: Split = "train", sample: Sample = ALL) -> Opened:
    """Pixels are read by their place in the file; only the format of torch before 1.6, no zip, is read whole.

    UserError where there is no tensor of images, or the file is broken or hostile.
    """
    content = _read(path)
    bare = isinstance(content, Place | _Whole)
    chosen = None
    if isinstance(content, dict):
        keys = [key for key, value in content.items() if isinstance(key, str) and isinstance(value, _ARRAYS)]
        chosen = choose_arrays(keys, split, source=str(path), usual="images")
    images = content if bare else content[chosen.images] if chosen else None
    if not isinstance(images, Place | _Whole):
        held = (
            f"a dict of {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else "something else"
        )
        raise UserError(
            f"{path}: no tensor of images (it holds {held[:200]}); "
            "expected a tensor, or a dict with 'images' and, if any, 'labels'"
        )
    labels = content[chosen.labels] if chosen and chosen.labels else None
    class_names = content.get("class_names") if isinstance(content, dict) else None
    found = describe(images.shape, images.dtype, kind="pt", source=f"{path}: the tensor")
    count = images.shape[0]
    y = None if labels is None else check_labels(_as_array(labels, path), count, source=f"{path}: labels")
    picked = pick(images.rows(), count, y, sample)
    if found.depth == "float32":
        row_bytes = math.prod(images.shape[1:]) * images.dtype.itemsize
        check_range(picked.rows, len(picked.numbers), row_bytes, source=f"{path}: the tensor")
    opened = PtImages(
        path,
        picked.names,
        found.size,
        picked.labels(y),
        tuple(map(str, class_names)) if isinstance(class_names, list | tuple) else None,
        depth=found.depth,
        about=found.about,
        notes=(chosen.notes if chosen else ()) + found.notes,
        rows=picked.rows,
        stored=images.dtype,
        layout=found.layout,
        bare=bare,
    )
    return Opened(opened, picked.places, count, y)


def _as_array(labels: Any, path: Path) -> np.ndarray:
    """A tensor of the file, or a list of numbers, as it is. UserError where it is larger than max_bytes()."""
    if isinstance(labels, list | tuple):
        numbers = all(type(label) is int and -(2**63) <= label < 2**63 for label in labels)
        return np.array(labels if numbers else [str(label)[:20] for label in labels])
    size = math.prod(labels.shape) * labels.dtype.itemsize
    if size > max_bytes():
        raise UserError(too_large(f"{path}: labels is {labels.dtype} {list(labels.shape)}, {size:,} bytes", size))
    return labels.rows()(0, labels.shape[0]) if labels.shape else np.zeros((), labels.dtype)


@dataclass(frozen=True)
class _Whole:
    """A tensor that is in memory, with the interface of a Place."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.numpy().dtype

    def rows(self) -> Any:
        return lambda first, stop: self.tensor[first:stop].numpy()


_ARRAYS = (Place, _Whole, list, tuple)


def _read(path: Path) -> Any:
    content = read_places(path)
    if isinstance(content, dict):
        return {key: _Whole(value) if isinstance(value, Tensor) else value for key, value in content.items()}
    return _Whole(content) if isinstance(content, Tensor) else content
