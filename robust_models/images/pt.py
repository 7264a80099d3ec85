"""`.pt`: what torch.save made of a tensor of images, or of a dict of `images`, `labels` and `class_names`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.arrays import ArrayImages, check_labels, describe
from robust_models.images.image_set import Add
from robust_models.images.pixels import check_range, depth_of
from robust_models.images.pt_reader import Place, read_places
from robust_models.images.pt_writer import Placeholder, pt_writer


@dataclass(frozen=True, kw_only=True)
class PtImages(ArrayImages):
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


def open_pt(path: Path) -> PtImages:
    """Pixels are read by their place in the file; only the format of torch before 1.6, no zip, is read whole."""
    content = _read(path)
    bare = isinstance(content, Place | _Whole)
    images = content.get("images") if isinstance(content, dict) else content
    if not isinstance(images, Place | _Whole):
        held = (
            f"a dict of {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else "something else"
        )
        raise UserError(
            f"{path}: no tensor of images (it holds {held[:200]}); "
            "expected a tensor, or a dict with 'images' and, if any, 'labels'"
        )
    labels, class_names = (None, None) if bare else (content.get(key) for key in ("labels", "class_names"))
    found = describe(images.shape, images.dtype, kind="pt", source=f"{path}: the tensor", either_layout=True)
    rows, count = images.rows(), images.shape[0]
    depth = depth_of(images.dtype)
    assert depth is not None
    if depth == "float32":
        row_bytes = int(np.prod(images.shape[1:])) * images.dtype.itemsize
        check_range(rows, count, row_bytes, source=f"{path}: the tensor")
    return PtImages(
        path,
        found.names,
        found.size,
        None if labels is None else check_labels(_as_array(labels), count, source=f"{path}: labels"),
        tuple(map(str, class_names)) if isinstance(class_names, list | tuple) else None,
        depth=depth,
        about=found.about,
        rows=rows,
        stored=images.dtype,
        channels_first=found.channels_first,
        bare=bare,
    )


def _as_array(labels: Any) -> np.ndarray:
    """A tensor of the file, or a list of numbers, as it is."""
    return (
        labels.rows()(0, labels.shape[0]) if isinstance(labels, Place | _Whole) and labels.shape else np.array(labels)
    )


@dataclass(frozen=True)
class _Whole:
    """A tensor that is in memory; it looks like a Place."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.numpy().dtype

    def rows(self) -> Any:
        return lambda first, stop: self.tensor[first:stop].numpy()


def _read(path: Path) -> Any:
    content = read_places(path)
    if isinstance(content, dict):
        return {key: _Whole(value) if isinstance(value, Tensor) else value for key, value in content.items()}
    return _Whole(content) if isinstance(content, Tensor) else content
