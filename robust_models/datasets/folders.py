"""Folders of image files, one subfolder per class: any, ImageNet, its restriction to nine super-classes, CINIC-10."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from robust_models.datasets.stores import FileStore
from robust_models.errors import UserError
from robust_models.images import IMAGE_SUFFIXES
from robust_models.images.folder import check_any
from robust_models.images.folder_files import Packed, find_files, sorted_naturally
from robust_models.images.image_set import Split
from robust_models.runtime.distributed import print_once

Classes = Callable[[list[str]], dict[str, int]]  # names of all class folders, sorted -> the label of each that is used

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val", "valid")}

# Sorted synsets first to last, both included. Engstrom et al. 2019, arXiv:1906.00945 A.1, and MadryLab/robustness.
RESTRICTED_IMAGENET = {
    "dog": (151, 268),
    "cat": (281, 285),
    "frog": (30, 32),
    "turtle": (33, 37),
    "bird": (80, 100),
    "primate": (365, 382),
    "fish": (389, 397),
    "crab": (118, 121),
    "insect": (300, 319),
}


def split_folder(root: Path, split: Split, *, required: bool = False) -> Path:
    """The subfolder of `root` with this split; `root` itself where it has no splits (and none are required)."""
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    has_other = any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names)
    if required or has_other:
        raise UserError(
            f"{root}: no folder {' or '.join(f'{name}/' for name in SPLIT_FOLDERS[split])} for {split} images"
        )
    return root


def open_files(root: Path, classes: Classes | None = None) -> tuple[FileStore, tuple[str, ...]]:
    """The files below `root` and the names of their class folders, in natural order. No file is opened.

    classes: which folders are used and their labels; the names are then its caller's business.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    found = find_files(root, IMAGE_SUFFIXES)
    check_any(root, found)
    files, note = found.files, found.note(root)
    print_once(() if note is None else (note,))
    bare = next((file for file in files if "/" not in file), None)
    if bare is not None:
        raise UserError(f"{root}: {bare} lies in no class subfolder; labels come from subfolders, one per class")
    folders = sorted_naturally({_top(file) for file in files})
    labels = classes(folders) if classes else {name: i for i, name in enumerate(folders)}
    used = [file for file in files if _top(file) in labels]
    y = np.fromiter((labels[_top(file)] for file in used), np.int64, len(used))
    return FileStore(y, root, Packed(used)), tuple(folders)


def check_several_classes(root: Path, class_names: Sequence[str], split: Split) -> None:
    """UserError where a folder has a single class and would be trained on, or holds folders below that class.

    The usual reason is a folder one level too high, so the message shows the levels below. Test images of one class
    alone are a measurement like any other: the class is one of the classifier's by its name, or refused (fit_labels).
    """
    if len(class_names) > 1:
        return
    below = root / class_names[0]
    classes = sorted_naturally(entry.name for entry in below.iterdir() if entry.is_dir()) if below.is_dir() else []
    if split == "test" and not classes:
        return
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    advice = f"below it are {shown}: give {below}" if classes else "labels come from subfolders, one per class"
    raise UserError(f"{root}: all images lie in one class folder, {class_names[0]}; {advice}")


def imagenet(folders: list[str], *, root: Path) -> dict[str, int]:
    """A label for each of the 1,000 synsets, in their order."""
    if len(folders) != 1000:
        raise UserError(f"{root}: {len(folders)} class folders; ImageNet has 1,000, named by synset (n01440764, ...)")
    return {name: i for i, name in enumerate(folders)}


def restricted_imagenet(folders: list[str], *, root: Path) -> dict[str, int]:
    """The synsets of the nine super-classes."""
    synsets = imagenet(folders, root=root)
    ranges = enumerate(RESTRICTED_IMAGENET.values())
    label_of = {synset: label for label, (first, last) in ranges for synset in range(first, last + 1)}
    return {name: label_of[synset] for name, synset in synsets.items() if synset in label_of}


def _top(file: str) -> str:
    return file.partition("/")[0]
