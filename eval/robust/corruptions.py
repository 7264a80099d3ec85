"""Accuracy on corrupted images: CIFAR-10-C and its like, from their files.

Hendrycks and Dietterich 2019, arXiv:1903.12261.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.robust.accuracy import accuracy_of
from eval.robust.progress import StageProgress
from eval.robust.stages import Stage
from robust_models import UserError
from robust_models.labels import CIFAR10_CLASSES, fit_labels

# The 15 whose mean the benchmark is, and the 4 that it keeps for choosing settings.
BENCHMARK = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = 5
LABELS = "labels.npy"


@dataclass(frozen=True)
class Corrupted:
    """One corruption: the images of severity 1, then those of 2, to 5; only what is asked for is read."""

    name: str
    x_u8: Tensor  # [5 * N,3,H,W], mapped from the file


@dataclass(frozen=True)
class CorruptionFiles:
    """A folder of the published layout: NAME.npy uint8 [5 * N,H,W,3] for each corruption, and labels.npy [5 * N]."""

    path: Path
    corrupted: Sequence[Corrupted]
    y: Tensor  # int64 [N], the same at every severity

    @property
    def fingerprint(self) -> str:
        """Of the labels, and of each file's size, first and last image: gigabytes are not read for it."""
        sha256 = hashlib.sha256(self.y.numpy().tobytes())
        for one in self.corrupted:
            ends = one.x_u8[[0, -1]].numpy().tobytes()
            sha256.update(f"{one.name} {list(one.x_u8.shape)}".encode() + ends)
        return sha256.hexdigest()

    def stages(self, limit: int | None = None) -> list[Stage]:
        """A pass for each corruption and severity, over the first `limit` images of each."""
        n = len(self.y)
        count = n if limit is None else min(limit, n)
        return [
            Stage(
                f"{one.name} {severity + 1}",
                images=(one.x_u8[severity * n : severity * n + count], self.y[:count]),
            )
            for one in self.corrupted
            for severity in range(SEVERITIES)
        ]

    def summary(self, passed: Sequence[StageProgress]) -> dict[str, Any]:
        """Accuracy of each corruption by severity, its mean, and the mean of all; `passed`: what stages() came to.

        The interval of the mean takes the images as the sample, as all 75 passes see the same ones.
        """
        by_name = {
            one.name: [passed[k * SEVERITIES + s].survived for s in range(SEVERITIES)]
            for k, one in enumerate(self.corrupted)
        }
        counted = {name: masks for name, masks in by_name.items() if name in BENCHMARK} or by_name
        of_image = torch.stack([mask.double() for masks in counted.values() for mask in masks]).mean(0)
        mean, n = float(of_image.mean()), len(of_image)
        reach = 1.96 * float(of_image.std()) / n**0.5 if n > 1 else 1.0
        return {
            "path": str(self.path),
            "n": n,
            "mean": mean,
            "interval": [max(0.0, mean - reach), min(1.0, mean + reach)],
            "mean_of": list(counted),
            "missing": [name for name in BENCHMARK if name not in by_name],
            "accuracy": {name: [accuracy_of(mask)[0] for mask in masks] for name, masks in by_name.items()},
            "wall_s": round(sum(stage.wall_s for stage in passed), 3),
        }


def open_corruptions(path: Path, class_names: Sequence[str]) -> CorruptionFiles:
    """The files in the folder, labels as indices into the classifier's class_names.

    A classifier of CIFAR-10's classes may have them in another order; for any other the labels are its own indices.
    UserError where the folder is not of the published layout.
    """
    if not path.is_dir():
        raise UserError(f"corruptions: no folder {path}; unpack CIFAR-10-C.tar and name its folder")
    names = [name for name in (*BENCHMARK, *EXTRA) if (path / f"{name}.npy").is_file()]
    if not names or not (path / LABELS).is_file():
        missing = LABELS if names else "gaussian_noise.npy and the like"
        raise UserError(f"corruptions: {path} has no {missing}; expected the files of CIFAR-10-C: NAME.npy, {LABELS}")
    labels = _read(path / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or len(labels) % SEVERITIES:
        raise UserError(
            f"corruptions: {path / LABELS} is {labels.dtype} {list(labels.shape)}; expected a label for each image at "
            f"{SEVERITIES} severities"
        )
    by_severity = labels.reshape(SEVERITIES, -1)
    if (by_severity != by_severity[0]).any():
        raise UserError(f"corruptions: {path / LABELS} has other labels at one severity than at another")
    same = {name.casefold() for name in class_names} == set(CIFAR10_CLASSES)
    names_of_labels = CIFAR10_CLASSES if same else None
    y = fit_labels(by_severity[0].astype(np.int64), names_of_labels, class_names, source=f"corruptions: {path}")
    corrupted = [Corrupted(name, _images(path / f"{name}.npy", len(labels))) for name in names]
    return CorruptionFiles(path, corrupted, torch.from_numpy(y))


def _images(path: Path, count: int) -> Tensor:
    pixels = _read(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != count:
        raise UserError(
            f"corruptions: {path} is {pixels.dtype} {list(pixels.shape)}; expected uint8 [{count},H,W,3], an image for "
            f"each of {LABELS}"
        )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _read(path: Path) -> np.ndarray:
    """The array of an .npy, mapped (copy on write: torch wants memory that it may write)."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"corruptions: {path} cannot be read as .npy ({error})") from error
