"""The `robust` measurement: from a config to the figures and all that they depend on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from eval.robust.attacks import Plan, plan_attack
from eval.robust.config import RobustConfig
from eval.robust.progress import Progress, StageProgress, StoredProgress
from eval.robust.sanity import check_sanity
from eval.robust.stages import Ball, Stage, binomial_interval, run_stages
from robust_models import Dataset, RobustClassifier, UserError, load_dataset
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.checkpoints.provenance import Source, load_classifier
from robust_models.labels import fit_labels
from robust_models.runtime.device import decide_precision, exact_fp32, pick_device, place


@dataclass(frozen=True)
class Radius:
    """One eps: what is planned there, and which stages of the chain are its own."""

    eps: float
    plan: Plan
    stages: slice


def run_robust(config: RobustConfig) -> dict[str, Any]:
    """Clean and robust accuracy (fractions) of a classifier on a data set, ready for JSON. UserError for bad input."""
    device = pick_device(config.device)
    model, checkpoint = load_classifier(config.ckpt, config)
    data = load_dataset(config.data, "test")
    x_u8, y = data.x_u8[: config.limit], _labels(data, model)[: config.limit]
    plans = {eps: plan_attack(config.attack, config.budget(eps, len(model.class_names))) for eps in config.radii}
    stages, radii = _chain(config.norm, plans)
    precision = decide_precision(config.precision, device, "measurement")
    model = place(model, device, precision.precision)
    settings = plans[config.radii[-1]].settings

    with exact_fp32():
        progress = _progress(config, model, checkpoint, settings, x_u8, y)
        passed = run_stages(model, x_u8, y, stages, batch_size=config.batch_size, progress=progress)
        sanity = _sanity(config, model, x_u8, y) if config.sanity else {}
    n, wall_s = len(y), sum(stage.wall_s for stage in passed)
    results = [_result(radius, passed) for radius in radii]
    return {
        "n": n,
        **_accuracy("clean_accuracy", "clean_interval", passed[0].survived),
        **(results[0] if len(results) == 1 else {"eps": list(config.radii)}),
        "norm": config.norm,
        "attack": config.attack,
        "restarts": config.restarts,
        "seed": config.seed,
        "results": results,
        "checkpoint": asdict(checkpoint),
        "data": config.data,
        "data_n": len(data),
        **precision.summary(),
        "batch_size": config.batch_size,
        "wall_s": round(wall_s, 3),
        "images_per_s": round(n / wall_s, 2),
        **sanity,
    }


def _chain(norm: str, plans: dict[float, Plan]) -> tuple[list[Stage], list[Radius]]:
    """The clean pass, then every attempt at every radius, growing; at eps 0 the clean pass is all."""
    stages, radii = [Stage("clean")], []
    for eps, plan in plans.items():
        first = len(stages)
        where = f" at eps {eps:g}" if len(plans) > 1 else ""
        for number, (label, attempt) in enumerate(plan.attempts.items() if eps else (), 1):
            title = f"attack {number}/{len(plan.attempts)} ({label}){where}"
            stages.append(Stage(title, attempt, Ball(norm, eps)))
        radii.append(Radius(eps, plan, slice(first, len(stages))))
    return stages, radii


def _result(radius: Radius, passed: list[StageProgress]) -> dict[str, Any]:
    own = passed[radius.stages]
    survived = passed[radius.stages.stop - 1].survived
    after = {
        label: float(stage.survived.float().mean()) for label, stage in zip(radius.plan.attempts, own, strict=False)
    }
    return {
        "eps": radius.eps,
        **_accuracy("robust_accuracy", "interval", survived),
        "after_each": after,
        "outside_ball": sum(stage.outside for stage in own),
        **{name: radius.plan.settings[name] for name in _TOLD if name in radius.plan.settings},
        "settings": dict(radius.plan.settings),
        "wall_s": round(sum(stage.wall_s for stage in own), 3),
    }


_TOLD = ("steps", "step_size", "random_start")  # of our own PGD, where earlier releases had them


def _progress(
    config: RobustConfig,
    model: RobustClassifier,
    checkpoint: Source,
    settings: Mapping[str, Any],
    x_u8: Tensor,
    y: Tensor,
) -> Progress:
    """Where --state left off; its fingerprint is all that the result depends on, but for the device's rounding."""
    if config.state is None:
        return Progress()
    fingerprint = {
        "checkpoint": checkpoint.sha256,
        **{name: getattr(config, name) for name in CheckpointFlags.__dataclass_fields__},
        "data": hashlib.sha256(x_u8.numpy().tobytes() + y.numpy().tobytes()).hexdigest(),
        "n": len(y),
        "norm": config.norm,
        "eps": list(config.radii),
        "attack": config.attack,
        "settings": dict(settings),
        "restarts": config.restarts,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "precision": model.precision,
    }
    return StoredProgress.open(config.state, fingerprint)


def _sanity(config: RobustConfig, model: RobustClassifier, x_u8: Tensor, y: Tensor) -> dict[str, Any]:
    """The checks at the middle one of the radii."""
    eps = config.radii[len(config.radii) // 2]
    found = check_sanity(model, x_u8, y, norm=config.norm, eps=eps, seed=config.seed, batch_size=config.batch_size)
    return {"sanity": asdict(found)}


def _labels(data: Dataset, model: RobustClassifier) -> Tensor:
    """y [N] int64 as indices into the model's classes."""
    if data.image_size != model.image_size:
        raise UserError(
            f"data: {data.source} has images of {data.image_size} px; the classifier takes {model.image_size} px"
        )
    return torch.from_numpy(fit_labels(data.y.numpy(), data.class_names, model.class_names, source=data.source))


def _accuracy(name: str, interval: str, right: Tensor) -> dict[str, Any]:
    successes = int(right.sum())
    return {name: successes / len(right), interval: list(binomial_interval(successes, len(right)))}
