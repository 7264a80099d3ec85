"""Which class each image is refined towards."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from refine.tables import Row, Value, read_table
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.images import IMAGE_SUFFIXES, ImageSet
from robust_models.labels import class_index, class_indices, fit_labels

_NAME_COLUMNS = ("file", "filename", "file_name", "name", "path", "image")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target")
DEBIASING_IMAGES = 1000  # as the paper's notebooks have it


def given_targets(images: ImageSet, model: RobustClassifier) -> Tensor:
    """The set's own labels as indices into the model's classes, int64 [N]."""
    if images.labels is None:
        raise UserError(
            f"targets: given, but {images.path} has no labels (an .npz carries them in arr_1, a folder as class "
            f"subfolders); pass --targets pseudo"
        )
    index = fit_labels(images.labels, images.class_names, model.class_names, source=f"{images.path} (--targets given)")
    return torch.from_numpy(index)


def labels_from_file(path: Path | str, names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """The label of each of the images called `names` in a CSV or JSON file, as indices into class_names, int64 [N].

    See refine.tables.read_table for the layouts; StyleGAN's dataset.json is one. A label is an index or a class name.
    Names are relative paths, matched with or without suffix; the file may name images that are not in the set. Labels
    without names belong to the images in order and must be as many.
    """
    path = Path(path)
    rows = read_table(path, field="targets", names=_NAME_COLUMNS, values=_LABEL_COLUMNS)
    if rows[0].name is None:
        if len(rows) != len(names):
            raise UserError(
                f"targets: {path} has {len(rows)} labels without names for {len(names)} images; give one for each, in "
                f"order, or name the image of each"
            )
        ordered = [row.value for row in rows]
    else:
        ordered = _by_name(rows, names, path)
    # A float is no label: as text it is refused with the class it may have meant.
    labels = [value if isinstance(value, int) else str(value) for value in ordered]
    return torch.tensor(class_indices(labels, class_names, source=f"targets: {path}"))


def one_class(name: str | int, n: int, class_names: Sequence[str]) -> Tensor:
    """One class for all n images, by its name (case ignored) or its index, int64 [n]."""
    return torch.full((n,), class_index(name, class_names, source="targets"))


def pseudo(logits: Tensor) -> Tensor:
    """The class that the classifier sees in each image: logits [N,C] -> int64 [N]."""
    return logits.argmax(dim=1)


def debiased(logits: Tensor) -> Tensor:
    """Pseudo-labels after the mean logits of the first 1,000 images are taken off, int64 [N].

    It shifts means only, and does not make the classes balanced. From the paper's notebooks.
    """
    return (logits - logits[:DEBIASING_IMAGES].mean(dim=0)).argmax(dim=1)


def uncertain(logits: Tensor, below: float) -> Tensor:
    """True for the images whose most probable class has a probability less than `below`: [N,C] -> bool [N]."""
    return logits.softmax(dim=1).amax(dim=1) < below


def _by_name(rows: Sequence[Row], names: Sequence[str], path: Path) -> list[Value]:
    """The value of each name; an entry of the very name, suffix and all, comes before one of its stem."""
    table: dict[str, Value] = {}
    stems: dict[str, set[Value]] = {}
    for row in rows:
        name = _normal(str(row.name))
        if table.setdefault(name, row.value) != row.value:
            raise UserError(f"targets: {path} names {row.name} twice, as {table[name]} and as {row.value}")
        stems.setdefault(_stem(name), set()).add(row.value)
    found: list[Value] = []
    missing: list[str] = []
    for name in map(_normal, names):
        values = {table[name]} if name in table else stems.get(_stem(name), set())
        if len(values) > 1:
            raise UserError(
                f"targets: {path} has several files called {name} but for their suffix, with different labels"
            )
        if values:
            found.extend(values)
        else:
            missing.append(name)
    if missing:
        raise UserError(
            f"targets: {path} has no label for {len(missing)} of {len(names)} images, the first {missing[0]} (it names "
            f"{rows[0].name}{', ...' if len(rows) > 1 else ''})"
        )
    return found


def _normal(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name
