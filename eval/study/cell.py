"""One cell: an image set refined as bigroc refine does, and scored as bigroc eval quality does."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.quality.collect import Collected, collect
from eval.quality.metric import MetricName, Options, Side
from eval.quality.metrics import PrecisionRecall, measure
from eval.study.inputs import Checkpoint, Images, Judge
from eval.study.results import Axes
from eval.study.store import Place
from refine.config import RefineConfig
from refine.pipeline import refine_set
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.classifier import Precision
from robust_models.errors import UserError
from robust_models.images import ImageSet, open_images, write_npz
from robust_models.labels import class_indices, fit_labels
from robust_models.metrics import Moments
from robust_models.metrics.inception_score import LEAST_IMAGES, shuffled_splits
from robust_models.metrics.kernel_resampled import KernelReference, reference_for
from robust_models.runtime.files import whole_file
from robust_models.runtime.seeds import ORDER, generator

EXAMPLES = 16  # images of the set that are kept to look at


@dataclass(frozen=True)
class Scorer:
    """What every cell is scored with."""

    judge: Judge
    reference: Moments
    rows: Tensor | None  # the judge's features of the reference images [M,D]
    device: torch.device
    batch_size: int


@dataclass(frozen=True)
class Refinement:
    """What a cell does to its images; axes and checkpoint of a raw cell do nothing."""

    axes: Axes
    checkpoint: Checkpoint | None
    precision: Precision
    real: Path | None = None  # real images, whose median stops the steps, and with which auto compares
    judges: tuple[str, ...] = ()  # by which it does


def run_cell(
    images: ImageSet, refinement: Refinement, scorers: Sequence[Scorer], place: Place, *, keep: bool
) -> dict[str, Any]:
    """Refines and scores, writes place.arrays (features, examples_u8) and gives num_images and scores.

    scores are by the first of the scorers; of the others there are features_2, features_3, ... keep: leave the refined
    set and its manifest in place.folder, where a killed run's refining goes on in any case.
    """
    scorer, *others = scorers
    scores: dict[str, float] = {"distance": 0.0}
    refined, targets = images, _labels(images, scorer.judge)
    if refinement.checkpoint is not None:
        config = refine_config(refinement, images.path, place.folder / "refined.npz", str(scorer.device))
        summary = refine_set(config, [one.judge.features for one in scorers])
        refined = open_images(config.out)
        rows = _manifest(config.out)
        scores["distance"] = float(np.mean([row["distance"] for row in rows]))
        if summary is not None and "eps_search" in summary:
            scores["eps_taken"] = summary["eps_search"]["eps_taken"]
        scores["target_agreement"] = float(np.mean([row["on_target_after"] for row in rows]))
        targets = _judged_as(rows, refinement.checkpoint, scorer.judge)
    collected = _collect(refined, scorer)
    more = {f"features_{i}": _rows(refined, other) for i, other in enumerate(others, 2)}
    scores |= _quality(collected, scorer)
    assert collected.rows is not None
    if targets is not None:
        logits = scorer.judge.features.logits(collected.rows.to(scorer.device))
        assert logits is not None
        scores["judge_agreement"] = float((logits.argmax(1).cpu() == targets).double().mean())
    with whole_file(place.arrays) as partial, partial.open("wb") as file:
        examples = refined.read(0, min(EXAMPLES, len(refined)))
        np.savez(file, features=collected.rows.numpy(), **more, examples_u8=examples.numpy())  # type: ignore[arg-type]
    if not keep:
        shutil.rmtree(place.folder, ignore_errors=True)
    return {"num_images": len(images), "scores": scores}


def draw(images: Images, seed: int, file: Path) -> ImageSet:
    """The images of a cell: the whole set, or `limit` of them in their order, which are kept in `file`."""
    if images.limit is None:
        return images.set
    if not file.exists():
        order = torch.randperm(len(images.set), generator=generator("cpu", seed, ORDER, 0))
        index = order[: images.limit].sort().values.tolist()
        labels = None if images.set.labels is None else images.set.labels[index]
        write_npz(file, torch.cat([images.set.read(i, i + 1) for i in index]), labels, images.set.class_names)
    return open_images(file)


def refine_config(refinement: Refinement, images: Path, out: Path, device: str) -> RefineConfig:
    """The configuration of `bigroc refine` for a cell: images to `out`, with its classifier, norm, eps and steps."""
    axes, checkpoint = refinement.axes, refinement.checkpoint
    assert checkpoint is not None
    flags: dict[str, Any] = {name: getattr(checkpoint.spec, name) for name in CheckpointFlags.__dataclass_fields__}
    settings = axes.settings(refinement.real, refinement.judges)
    places: dict[str, Any] = {"ckpt": checkpoint.ckpt, "input": images, "out": out, "device": device, "overwrite": True}
    return RefineConfig(**flags, **settings, **places, precision=refinement.precision)


def _collect(images: ImageSet, scorer: Scorer) -> Collected:
    features = scorer.judge.features
    has_score = features.num_classes is not None and len(images) >= LEAST_IMAGES
    found = collect(
        images,
        features,
        ("frechet", "rows", "score") if has_score else ("frechet", "rows"),
        split=shuffled_splits(len(images)) if has_score else None,
        batch_size=scorer.batch_size,
    )
    assert found is not None
    return found


def _rows(images: ImageSet, scorer: Scorer) -> np.ndarray:
    found = collect(images, scorer.judge.features, ("rows",), batch_size=scorer.batch_size)
    assert found is not None
    assert found.rows is not None
    return found.rows.numpy()


def _quality(collected: Collected, scorer: Scorer) -> dict[str, float]:
    """frechet, kid (where it is the one to go by), inception_score, precision and recall, as far as they can be had."""
    assert collected.rows is not None
    enough = scorer.rows is not None and min(len(scorer.rows), len(collected.rows)) > PrecisionRecall.neighbours
    metrics: list[MetricName] = ["fid", *(["is"] if collected.score else []), *(["prc"] if enough else [])]
    found = measure(
        metrics,
        Side(frechet=collected.frechet, score=collected.score, rows=collected.rows),
        Side(frechet=scorer.reference, rows=scorer.rows),
        scorer.judge.features,
        Options(),
    )
    if scorer.rows is not None:
        against = reference_for(scorer.rows, len(collected.rows))
        if isinstance(against, KernelReference):
            found["kid"] = against.distance(collected.rows)
    shown = ("frechet", "kid", "inception_score", "precision", "recall")
    return {name: found[name] for name in shown if name in found}


def _labels(images: ImageSet, judge: Judge) -> Tensor | None:
    """The set's own labels as the judge's classes; None where there are none that fit."""
    if images.labels is None or judge.class_names is None:
        return None
    try:
        return torch.from_numpy(fit_labels(images.labels, images.class_names, judge.class_names, source="images"))
    except UserError:
        return None


def _judged_as(rows: list[dict[str, Any]], checkpoint: Checkpoint, judge: Judge) -> Tensor | None:
    """Each image's target as the judge's class; None where the judge has other classes than the classifier."""
    if judge.class_names is None:
        return None
    try:
        known = class_indices(checkpoint.description.class_names, judge.class_names, source="judge")
    except UserError:
        return None
    return torch.tensor([known[row["target"]] for row in rows])


def _manifest(out: Path) -> list[dict[str, Any]]:
    lines = out.with_name(out.name + ".manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
