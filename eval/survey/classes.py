"""The class of each pair in words, from whatever knows it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.survey.config import SurveyConfig
from refine.label_files import values_from_file
from robust_models.errors import UserError
from robust_models.images import ImageSet, open_images
from robust_models.labels import CIFAR10_CLASSES, assumed_names, default_class_names


def classes_of(before: ImageSet, after: ImageSet, config: SurveyConfig) -> list[str] | None:
    """Each image's class name; None where there are no labels. Names that nothing gives are assumed, and said to be.

    UserError where two sources disagree, or the survey needs names and nobody has them.
    """
    labels, names = _labels(before, after, config.labels)
    if labels is None:
        if config.show_class:
            raise UserError("show-class: neither set has labels; give them with --labels")
        return None
    if config.class_names is not None:
        names = tuple(name.strip() for name in config.class_names.split(","))
    low, high = int(labels.min()), int(labels.max())
    if names is None and low >= 0:
        names = _default_names(high + 1, before.size)
        if config.show_class and names != CIFAR10_CLASSES:
            raise UserError("show-class: the labels have no names; give --class-names cat,dog,...")
        taken = f"taken as {assumed_names(names)}; --class-names cat,dog,..."
        print(f"class names: none are given, {taken}", file=sys.stderr)
    if names is None:
        return [str(label) for label in labels.tolist()]
    if low < 0 or high >= len(names):
        raise UserError(f"class-names: labels run from {low} to {high}, but there are {len(names)} names")
    return [names[int(label)] for label in labels]


def _default_names(count: int, size: tuple[int, int]) -> tuple[str, ...]:
    """CIFAR-10's where the labels run to 9 and the images have its size, else the numbers; as for a classifier."""
    return default_class_names(count, size[0] if size[0] == size[1] else 0)


Labels = tuple[np.ndarray | None, Sequence[str] | None]


def _labels(before: ImageSet, after: ImageSet, source: Path | None) -> Labels:
    """Labels int64 [N], and their names if known."""
    if source is not None:
        return _from_table(source, before) if source.suffix in (".csv", ".json") else _from_set(source, before)
    known = before.class_names or after.class_names
    if before.labels is None or after.labels is None:
        return (before.labels if after.labels is None else after.labels), known
    if not np.array_equal(before.labels, after.labels):
        first = int((before.labels != after.labels).argmax())
        raise UserError(
            f"labels: image {first} is of class {before.labels[first]} in {before.path} and {after.labels[first]} in "
            f"{after.path}; are the sets in the same order? If so, say whose count: --labels {before.path}"
        )
    return before.labels, known


def _from_set(source: Path, images: ImageSet) -> Labels:
    found = open_images(source)
    if found.labels is None:
        raise UserError(f"labels: {source} has none; give a labelled image set, or a .csv or .json file")
    if len(found) != len(images):
        raise UserError(f"labels: {source} has {len(found)} images, {images.path} {len(images)}")
    return found.labels, found.class_names or images.class_names


def _from_table(source: Path, images: ImageSet) -> Labels:
    """By name where the file names images, else in order. Labels that are no numbers are class names."""
    values = [str(value) for value in values_from_file(source, images.names, field="labels")]
    if all(value.isdecimal() for value in values):
        return np.array([int(value) for value in values]), images.class_names
    names = sorted(set(values))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[value] for value in values]), names
