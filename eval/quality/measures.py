"""The metrics: what each needs of the two sets, and its number."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.quality.collect import Part
from robust_models.errors import UserError
from robust_models.metrics import (
    FrechetReference,
    FrechetStatistics,
    Moments,
    Resampler,
    ScoreStatistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from robust_models.metrics.kernel import SUBSET_SIZE, SUBSETS

NEEDS: dict[str, tuple[Collection[Part], Collection[Part]]] = {  # of the images, of the reference
    "fid": (("frechet",), ("frechet",)),
    "is": (("score",), ()),
    "kid": (("rows",), ("rows",)),
    "prc": (("rows",), ("rows",)),
    "sfid": (("spatial",), ("spatial",)),
    "fd-dinov2": ((), ()),  # a pass of its own
}
NEIGHBOURS = 3
ADM_REFERENCE = 10_000  # images that guided-diffusion's precision and recall compare with


@dataclass(frozen=True)
class Side:
    """One of the two sets, as far as the metrics asked for need it."""

    frechet: Moments | None = None
    spatial: Moments | None = None
    score: ScoreStatistics | None = None
    rows: Tensor | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Options:
    protocol: str
    is_fid: bool  # the features are the FID's
    per_class: bool = False
    bootstrap: int = 0
    infinite: bool = False
    seed: int = 0


def measure(metrics: Collection[str], images: Side, reference: Side, options: Options) -> dict[str, Any]:
    """The numbers, flat, ready for JSON."""
    found: dict[str, Any] = {}
    for metric in metrics:
        if metric in _MEASURES:
            found |= _MEASURES[metric](images, reference, options)
    return found


def _fid(images: Side, reference: Side, options: Options) -> dict[str, Any]:
    assert images.frechet is not None
    assert reference.frechet is not None
    against = FrechetReference(reference.frechet)
    frechet = against.distance(images.frechet)
    found: dict[str, Any] = {"frechet": frechet, **({"fid": frechet} if options.is_fid else {})}
    if options.bootstrap or options.infinite:
        assert images.rows is not None
        resampler = Resampler(images.rows, against)
        if options.bootstrap:
            found["frechet_interval"] = list(resampler.interval(options.bootstrap, seed=options.seed))
            found["bootstrap"] = options.bootstrap
        if options.infinite:
            limit = resampler.extrapolated(seed=options.seed)
            found["frechet_infinite"] = limit.value
            found["frechet_infinite_fit"] = {"slope": limit.slope, "n": limit.sizes, "frechet": limit.distances}
    if options.per_class:
        found["per_class"] = _per_class(images, reference)
    return found


def _per_class(images: Side, reference: Side) -> dict[str, Any]:
    """Frechet distance of the images of each class to the reference's of the same class."""
    ours, theirs = _by_class(images, "images"), _by_class(reference, "reference")
    if ours.keys() != theirs.keys():
        only = sorted(ours.keys() ^ theirs.keys())[0]
        where = "the images" if only in ours else "the reference"
        raise UserError(f"per_class: class {only} is only in {where}; both sets need the same classes")
    for name in ours:
        if min(len(ours[name]), len(theirs[name])) < 2:
            raise UserError(f"per_class: class {name} has 1 image in one of the sets; a Frechet distance needs 2")
    return {
        name: {
            "frechet": frechet_distance(FrechetStatistics.of(rows), FrechetStatistics.of(theirs[name])),
            "n_images": len(rows),
            "n_reference": len(theirs[name]),
        }
        for name, rows in ours.items()
    }


def _by_class(side: Side, role: str) -> dict[str, Tensor]:
    """Feature rows by the class's name (its number where the set names none)."""
    if side.labels is None or side.rows is None:
        raise UserError(f"per_class: {role} has no labels; give an .npz with arr_1 or a folder of class subfolders")
    labels = torch.from_numpy(side.labels)
    names = {int(i): side.class_names[int(i)] if side.class_names else str(int(i)) for i in labels.unique()}
    return {name: side.rows[labels == i] for i, name in names.items()}


def _is(images: Side, reference: Side, options: Options) -> dict[str, Any]:
    assert images.score is not None
    mean, std = images.score.score()
    return {"inception_score": mean, "inception_score_std": std, "inception_score_splits": len(images.score.n)}


def _kid(images: Side, reference: Side, options: Options) -> dict[str, Any]:
    assert images.rows is not None
    assert reference.rows is not None
    mean, std = kernel_distance(images.rows, reference.rows)
    size = min(SUBSET_SIZE, len(images.rows), len(reference.rows))
    return {"kid": mean, "kid_std": std, "kid_subsets": [SUBSETS, size]}


def _prc(images: Side, reference: Side, options: Options) -> dict[str, Any]:
    assert images.rows is not None
    assert reference.rows is not None
    real = reference.rows[:ADM_REFERENCE] if options.protocol == "adm" else reference.rows
    if min(len(images.rows), len(real)) <= NEIGHBOURS:
        raise UserError(
            f"metrics: prc needs more than {NEIGHBOURS} images in each set, got {len(images.rows)} and {len(real)}"
        )
    precision, recall = precision_recall(images.rows, real, k=NEIGHBOURS)
    return {"precision": precision, "recall": recall, "prc_neighbours": NEIGHBOURS, "prc_n_reference": len(real)}


def _sfid(images: Side, reference: Side, options: Options) -> dict[str, Any]:
    assert images.spatial is not None
    assert reference.spatial is not None
    return {"sfid": frechet_distance(images.spatial, reference.spatial)}


_MEASURES: dict[str, Callable[[Side, Side, Options], dict[str, Any]]] = {
    "fid": _fid,
    "is": _is,
    "kid": _kid,
    "prc": _prc,
    "sfid": _sfid,
}
