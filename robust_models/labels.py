"""From an image set's labels to a classifier's class indices."""

from collections.abc import Sequence

import numpy as np

from robust_models.errors import UserError


def fit_labels(
    labels: np.ndarray, names: Sequence[str] | None, class_names: Sequence[str], *, source: str
) -> np.ndarray:
    """labels [N] of a set -> indices into the classifier's class_names, int64 [N].

    A set that names its classes is matched by name (case ignored); names that are numbers, and sets without names, are
    indices already. UserError where a label fits no class.
    """
    known = {name.casefold(): i for i, name in enumerate(class_names)}
    if names is None or all(name.isdecimal() for name in names):
        index = labels if names is None else np.array([int(name) for name in names], dtype=np.int64)[labels]
    else:
        strangers = [name for name in names if name.casefold() not in known]
        if strangers:
            raise UserError(
                f"{source}: class {strangers[0]!r} is none of the classifier's {len(class_names)} classes "
                f"({', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''})"
            )
        index = np.array([known[name.casefold()] for name in names], dtype=np.int64)[labels]
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(class_names):
        raise UserError(
            f"{source}: labels run from {low} to {high}, but the classifier has {len(class_names)} classes "
            f"(0 to {len(class_names) - 1})"
        )
    return index
