"""From an image set's labels to a classifier's class indices."""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

from robust_models.errors import UserError


def fit_labels(
    labels: np.ndarray, names: Sequence[str] | None, class_names: Sequence[str], *, source: str
) -> np.ndarray:
    """labels [N] of a set -> indices into the classifier's class_names, int64 [N].

    A set that names its classes is matched by name (case ignored); names that are numbers and no classes of the
    classifier, and sets without names, are indices already. UserError where a label fits no class.
    """
    if names is not None and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise UserError(
            f"{source}: labels run from {labels.min()} to {labels.max()}, but the set names {len(names)} classes "
            f"(0 to {len(names) - 1})"
        )
    known = _index_of(class_names)
    strangers = [name for name in names or () if name.casefold() not in known]
    if names is None or (strangers and all(name.isdecimal() for name in names)):
        index = labels if names is None else np.array([int(name) for name in names], dtype=np.int64)[labels]
    elif strangers:
        raise _no_class(strangers[0], class_names, source)
    else:
        index = np.array([known[name.casefold()] for name in names], dtype=np.int64)[labels]
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(class_names):
        raise UserError(
            f"{source}: labels run from {low} to {high}, but the classifier has {len(class_names)} classes "
            f"(0 to {len(class_names) - 1})"
        )
    return index


def class_index(label: str | int, class_names: Sequence[str], *, source: str) -> int:
    """The index of one class that a person wrote: its name (case ignored), or else its index.

    UserError, beginning with `source`, with the near miss.
    """
    return class_indices([label], class_names, source=source)[0]


def class_indices(labels: Iterable[str | int], class_names: Sequence[str], *, source: str) -> list[int]:
    """The class_index of each label."""
    known = _index_of(class_names)
    found = []
    for label in labels:
        name = str(label).casefold()
        if isinstance(label, str) and name in known:
            found.append(known[name])
        elif isinstance(label, str) and not label.isdecimal():
            raise _no_class(label, class_names, source)
        elif 0 <= int(label) < len(class_names):
            found.append(int(label))
        else:
            raise UserError(
                f"{source}: class {label} is outside the classifier's {len(class_names)} classes "
                f"(0 to {len(class_names) - 1})"
            )
    return found


def prompts_of(prompt: str | None) -> list[str]:
    """The texts of --prompt, which stand between bars; they are the first classes of an image-text model."""
    return [text.strip() for text in (prompt or "").split("|") if text.strip()]


def listed_classes(text: str | None, class_names: Sequence[str], prompt: str | None = None) -> list[int]:
    """The classes of --classes, each once: names or indices with commas; None: those of --prompt, else all."""
    if text is None:
        return list(range(len(prompts_of(prompt)) or len(class_names)))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"classes: {text!r} names none; give names or indices with commas")
    return list(dict.fromkeys(class_indices(words, class_names, source="classes")))


def _index_of(class_names: Sequence[str]) -> dict[str, int]:
    return {name.casefold(): i for i, name in enumerate(class_names)}


def _no_class(name: str, class_names: Sequence[str], source: str) -> UserError:
    near = difflib.get_close_matches(name.casefold(), [known.casefold() for known in class_names], n=1)
    meant = [known for known in class_names if known.casefold() in near]
    shown = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
    return UserError(
        f"{source}: class {name!r} is none of the classifier's {len(class_names)} classes"
        + (f"; did you mean {meant[0]}?" if meant else f" ({shown})")
    )


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def default_class_names(count: int, image_size: int) -> tuple[str, ...]:
    """Names for the classes of a network that has none: CIFAR-10's where count and pixels fit, else the numbers."""
    return CIFAR10_CLASSES if (count, image_size) == (10, 32) else tuple(str(i) for i in range(count))


def assumed_names(names: tuple[str, ...]) -> str:
    """The default names in a few words."""
    return "those of CIFAR-10" if names == CIFAR10_CLASSES else f"numbers, 0 to {len(names) - 1}"
