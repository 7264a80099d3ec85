"""Labelled image data by one string."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_models.datasets.beton import open_beton
from robust_models.datasets.dataset import AnyDataset, Dataset, LazyDataset, first, mixed, named
from robust_models.datasets.folders import (
    RESTRICTED_IMAGENET,
    Split,
    check_several_classes,
    imagenet,
    open_files,
    restricted_imagenet,
    split_folder,
)
from robust_models.datasets.stores import SetStore, Store
from robust_models.errors import UserError
from robust_models.images import IMAGE_SUFFIXES, open_image_groups, to_float, to_u8
from robust_models.images.arrays import ArrayImages
from robust_models.images.folder_files import files_below
from robust_models.images.image_set import ImageSet, OnError
from robust_models.labels import CIFAR10_CLASSES
from robust_models.runtime.files import located

_CIFAR = ("cifar10", "cifar100")
_FITS_ALL = 1  # pixel: no image is smaller
_SMALL = 2 << 30  # bytes: arrays of pixels up to this size are held in memory
_READ_AT_ONCE = 1024  # images
_IMAGENET_SIZE, _IMAGENET_RESIZE = 224, 256  # pixels; the shorter side, then the centre (He et al. 2015)


def open_dataset(
    source: str,
    split: Split,
    *,
    image_size: int | None = None,
    class_names: Sequence[str] = (),
    on_error: OnError = "fail",
    limit: int | None = None,
) -> AnyDataset:
    """The labelled images that `source` names; CIFAR and arrays in memory, everything else read as it is asked for.

    - "cifar10", "cifar100": torchvision's copy under ./data (downloaded with checksum when missing); "cifar10:DIR";
    - "imagenet:DIR", with train/ and val/ of 1,000 synset folders each; "restricted_imagenet:DIR", nine super-classes
      of it (Engstrom et al. 2019, arXiv:1906.00945 A.1); both at 224 pixels unless image_size says otherwise;
    - "cinic10:DIR", with train/, valid/ and test/;
    - a `.beton` of FFCV;
    - anything that `open_images` reads, with labels: a folder of class subfolders, npz, pt, tar, parquet, bundled:NAME;
      a folder with subfolders train/ and test/ (or val/) gives its `split`.

    image_size (pixels): images become squares of this size, the shorter side resized and the centre cut; without it,
    they must be squares of one size. class_names replaces the names of the source; a set without names otherwise calls
    its classes "0", "1", ... on_error="skip" leaves out what cannot be read and is met when the set is opened; files of
    several sizes are opened when they are read. A set in the order of its classes comes shuffled (see `mixed`). limit:
    only the first so many images, of which `total` says how many there are; no other image is decoded. UserError for
    bad input.
    """
    data = _listed(source, split, image_size)
    if data is None:
        data = _image_set(_place(source, split), split, image_size, on_error, limit)
    else:
        data = first(mixed(data), limit)
    return named(data, class_names) if class_names else data


def load_dataset(
    source: str,
    split: Split,
    *,
    image_size: int | None = None,
    class_names: Sequence[str] = (),
    limit: int | None = None,
) -> Dataset:
    """`open_dataset`, all of it in memory. UserError, too, where the memory does not hold it."""
    return open_dataset(source, split, image_size=image_size, class_names=class_names, limit=limit).in_memory()


def open_whole(source: str, split: Split) -> AnyDataset:
    """As `open_dataset`, but of any sizes: a lazy set is then for its `store` alone, which gives images as they are."""
    in_memory = source.partition(":")[0] in _CIFAR
    return open_dataset(source, split, image_size=None if in_memory else _FITS_ALL)


def _place(source: str, split: Split) -> Path:
    path = located(source)
    return split_folder(path, split) if path.is_dir() else path


def _listed(source: str, split: Split, image_size: int | None) -> AnyDataset | None:
    """What is known without opening a single image; None where an image set has to be opened first."""
    name, _, place = source.partition(":")
    if name in _CIFAR:
        data = _cifar(name, place or "data", split)
        if image_size not in (None, data.image_size):
            raise UserError(f"data.image_size: {name} has images of {data.image_size} px, asked for {image_size}")
        return data
    if name in _NAMED_FOLDERS and name != source:
        return _NAMED_FOLDERS[name](Path(place), split, image_size)
    path = _place(source, split)
    if path.suffix.lower() == ".beton":
        store, class_names = open_beton(path)
        size = image_size or store.image_size
        store.check_size(size)
        return _whole(store, size, size, class_names, str(path))
    if image_size and path.is_dir() and _holds_files(path):
        store, class_names = open_files(path)
        check_several_classes(path, class_names, split)
        return _whole(store, image_size, image_size, class_names, str(path))
    return None


def _cifar(name: str, root: str, split: Split) -> Dataset:
    """ "cifar10" or "cifar100" from `root`, downloaded to it by torchvision, with checksum, where it is missing."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, archive = {
        "cifar10": (CIFAR10, "cifar-10-python.tar.gz"),
        "cifar100": (CIFAR100, "cifar-100-python.tar.gz"),
    }[name]
    try:
        data = kind(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name}: not under {root} and the download failed ({error}); "
            f"put {archive} there, or give an .npz or a folder as --data.path"
        ) from error
    x_u8 = torch.from_numpy(data.data.transpose(0, 3, 1, 2).copy())
    class_names = CIFAR10_CLASSES if name == "cifar10" else tuple(data.classes)
    return Dataset(x_u8, torch.tensor(data.targets), class_names, f"{name} {split}")


def _imagenet(root: Path, split: Split, image_size: int | None) -> LazyDataset:
    folder = split_folder(root, split, required=True)
    store, synsets = open_files(folder, partial(imagenet, root=folder))
    # Numbers, because that is what classifiers of these 1,000 classes go by: each names them in another way.
    class_names = tuple(str(i) for i in range(len(synsets)))
    return _whole(store, *_imagenet_sizes(image_size), class_names, f"imagenet {split}")


def _restricted_imagenet(root: Path, split: Split, image_size: int | None) -> LazyDataset:
    folder = split_folder(root, split, required=True)
    store, _ = open_files(folder, partial(restricted_imagenet, root=folder))
    class_names = tuple(RESTRICTED_IMAGENET)
    return _whole(store, *_imagenet_sizes(image_size), class_names, f"restricted_imagenet {split}")


def _cinic10(root: Path, split: Split, image_size: int | None) -> LazyDataset:
    folder = split_folder(root, split, required=True)
    store, class_names = open_files(folder)
    if len(class_names) != 10:
        raise UserError(f"{folder}: {len(class_names)} class folders; CINIC-10 has 10")
    size = image_size or 32
    return _whole(store, size, size, class_names, f"cinic10 {split}")


_NAMED_FOLDERS: dict[str, Callable[[Path, Split, int | None], LazyDataset]] = {
    "imagenet": _imagenet,
    "restricted_imagenet": _restricted_imagenet,
    "cinic10": _cinic10,
}


def _imagenet_sizes(image_size: int | None) -> tuple[int, int]:
    size = image_size or _IMAGENET_SIZE
    return size, round(size * _IMAGENET_RESIZE / _IMAGENET_SIZE)


def _image_set(path: Path, split: Split, image_size: int | None, on_error: OnError, limit: int | None) -> AnyDataset:
    groups = open_image_groups(path, split=split, on_error=on_error, limit=limit, fair=True)
    images, order = groups.one_set(), groups.order.argsort()
    for problem in images.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    if images.labels is None:
        raise UserError(f"{path}: no labels; {_WHERE_LABELS.get(images.kind, 'this kind of set must hold them')}")
    height, width = images.size
    if height != width and not image_size:
        raise UserError(f"{path}: images are {width}x{height}; classifiers take square images")
    names = images.class_names or tuple(str(i) for i in range(groups.num_classes))
    if images.kind == "folder":
        check_several_classes(path, names, split)
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= len(names):
        raise UserError(f"{path}: labels run from {low} to {high}; expected 0 to {len(names) - 1}")
    size = image_size or height
    if images.size == (size, size) and isinstance(images, ArrayImages) and len(images) * 3 * size**2 <= _SMALL:
        data = Dataset(_all_u8(images), torch.from_numpy(images.labels), names, str(path), groups.total)
    else:
        data = replace(_whole(SetStore(images.labels, images), size, size, names, str(path)), total=groups.total)
    return data.shuffled(order)


def _all_u8(images: ImageSet) -> Tensor:
    x_u8 = torch.empty(len(images), 3, *images.size, dtype=torch.uint8)
    for part, x in images.batches(_READ_AT_ONCE):
        x_u8[part] = x if x.dtype == torch.uint8 else to_u8(to_float(x))
    return x_u8


_WHERE_LABELS = {
    "folder": "a folder needs class subfolders",
    "npz": "an .npz needs arr_1 [N]",
    "npy": "an .npy has no place for them: numpy.savez(FILE.npz, arr_0=images, arr_1=labels)",
    "pt": "a .pt needs a dict of images and labels",
    "tar": "samples need a .cls file or a label in .json",
    "parquet": "a column of integer labels is needed",
}


def _whole(store: Store, image_size: int, resize_to: int, class_names: tuple[str, ...], source: str) -> LazyDataset:
    return LazyDataset(store, np.arange(len(store.labels)), image_size, resize_to, class_names, source)


def _holds_files(path: Path) -> bool:
    """Image files, that is, rather than shards of them."""
    return any(Path(file).suffix.lower() in IMAGE_SUFFIXES for file in files_below(path))
