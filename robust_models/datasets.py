"""Labelled image data by one string: "cifar10", "cifar10:DIR", an .npz, or a folder of class subfolders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images import open_images

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Dataset:
    """x_u8 uint8 [N,3,H,W], y int64 [N], and the name of each class."""

    x_u8: Tensor
    y: Tensor
    class_names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, part: slice) -> "Dataset":
        return Dataset(self.x_u8[part], self.y[part], self.class_names, self.source)

    @property
    def image_size(self) -> int:
        return self.x_u8.shape[-1]


def load_dataset(source: str, split: Split, *, class_names: Sequence[str] = ()) -> Dataset:
    """The labelled images that `source` names; a folder with subfolders train/ and test/ gives its `split`.

    "cifar10" is torchvision's copy under ./data (downloaded with checksum when missing); "cifar10:DIR" looks in DIR.
    class_names replaces the names of the source; an .npz without names otherwise calls its classes "0", "1", ...
    A set in the order of its classes comes shuffled (see _mixed).
    """
    if source == "cifar10" or source.startswith("cifar10:"):
        data = _torchvision_cifar10(source.removeprefix("cifar10").removeprefix(":") or "data", split)
    else:
        root = Path(source)
        data = _image_set(root / split if (root / split).is_dir() else root)
    if class_names:
        if len(class_names) < len(data.class_names):
            raise UserError(
                f"data.class_names: {len(class_names)} names for the {len(data.class_names)} classes of {source}"
            )
        data = Dataset(data.x_u8, data.y, tuple(class_names), data.source)
    return _mixed(data)


def _mixed(data: Dataset) -> Dataset:
    """A set that lies in the order of its classes, as folders do, is shuffled, always alike.

    Its first images (--limit) and its last ones (held out in training) are then a fair sample; any other order stays.
    """
    in_class_order = bool((data.y.diff() >= 0).all()) and int(data.y[0]) != int(data.y[-1])
    if not in_class_order:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return Dataset(data.x_u8[order], data.y[order], data.class_names, data.source)


def _torchvision_cifar10(root: str, split: Split) -> Dataset:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cifar10: not under {root} and the download failed ({error}); "
            f"put cifar-10-python.tar.gz there, or give an .npz or a folder as --data.path"
        ) from error
    x_u8 = torch.from_numpy(data.data.transpose(0, 3, 1, 2).copy())
    return Dataset(x_u8, torch.tensor(data.targets), CIFAR10_CLASSES, f"cifar10 {split}")


def _image_set(path: Path) -> Dataset:
    images = open_images(path)
    if images.labels is None:
        raise UserError(f"{path}: no labels; a folder needs class subfolders, an .npz needs arr_1 [N]")
    if images.size[0] != images.size[1]:
        raise UserError(f"{path}: images are {images.size[1]}x{images.size[0]}; classifiers take square images")
    names = images.class_names or tuple(str(i) for i in range(int(images.labels.max()) + 1))
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= len(names):
        raise UserError(f"{path}: labels run from {low} to {high}; expected 0 to {len(names) - 1}")
    return Dataset(images.read(0, len(images)), torch.from_numpy(np.asarray(images.labels)), names, str(path))
