"""Images of several sizes as one row of images, those of one size after those of another."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_models.images import ImageGroups, ImageSet


@dataclass(frozen=True)
class GroupedImages:
    """The images of one or several sets, numbered through in the order of the sets; each set has one size and depth.

    Labels and names are in the order of the whole, which `order` gives: row i is image order[i] of the whole.
    """

    groups: ImageGroups

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def path(self) -> Path:
        """What was opened."""
        return self.groups.path

    @property
    def counts(self) -> list[int]:
        """How many images each set has."""
        return [len(images) for images in self.groups.sets]

    @cached_property
    def order(self) -> Tensor:
        """The place among all images of each row, int64 [N]."""
        return torch.from_numpy(np.concatenate(self.groups.places))

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N] in the order of the whole; None where there are none."""
        parts = [images.labels for images in self.groups.sets]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        labels = np.empty(len(self), np.int64)
        labels[self.order.numpy()] = np.concatenate(known)
        return labels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the labels, where those have names."""
        return self.groups.sets[0].class_names

    @property
    def names(self) -> Sequence[str]:
        """One for each image, in the order of the whole."""
        return self.groups.sets[0].names if len(self.groups.sets) == 1 else self.groups.names

    def at(self, row: int) -> tuple[ImageSet, int]:
        """The set of this row, and its number in it."""
        g = self.set_of(row)
        images = self.groups.sets[g]
        return images, row - self._ends[g] + len(images)

    def set_of(self, row: int) -> int:
        """The number of the set that this row is of."""
        return bisect_right(self._ends, row)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop-1, which must be of one set, [n,3,H,W] in its depth."""
        images, first = self.at(start)
        return images.read(first, first + stop - start)
