"""The `robust` measurement: from a classifier and labelled images to the figures and all that they depend on."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from eval.robust.accuracy import accuracy_of, first_logits, images_and_labels, probability_warnings
from eval.robust.attacks import plan_attack
from eval.robust.config import RobustConfig
from eval.robust.progress import Progress, StageProgress, StoredProgress
from eval.robust.sanity import check_sanity
from eval.robust.stages import Radius, chain, run_stages
from refine.network import together
from robust_models import RobustClassifier
from robust_models.checkpoints.flags import CheckpointFlags, Source, load_classifier
from robust_models.datasets import open_dataset
from robust_models.runtime.device import decide_precision, exact_fp32, pick_device, place
from robust_models.runtime.files import exclusive, sweep_partials


def run_robust(config: RobustConfig) -> dict[str, Any]:
    """Clean and robust accuracy (fractions) of a classifier on a data set, ready for JSON. UserError for bad input.

    With a state, no other process may write it meanwhile; what was stopped goes on from it.
    """
    if config.state is None:
        return _measured(config)
    with exclusive(config.state, "state"):
        sweep_partials(config.state.parent, config.state.name)
        return _measured(config)


def _measured(config: RobustConfig) -> dict[str, Any]:
    device = pick_device(config.device)
    model, checkpoint = load_classifier(config.ckpt, config)
    data = open_dataset(config.data, "test")
    x_u8, y = images_and_labels(data[: config.limit].in_memory(), model)
    plans = {eps: plan_attack(config.attack, config.budget(eps, len(model.class_names))) for eps in config.radii}
    stages, radii = chain(config.norm, plans)
    precision = decide_precision(config.precision, device, "measurement")
    model = place(model, device, precision.precision)
    seen = together(model)
    settings = plans[config.radii[-1]].settings

    with exact_fp32():
        warnings = probability_warnings(first_logits(seen, x_u8))
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        progress = _progress(config, model, checkpoint, settings, x_u8, y)
        if config.state is not None and progress.stages:
            print(f"state: {progress.standing(len(y), len(stages))} ({config.state})", file=sys.stderr)
        try:
            passed = run_stages(seen, x_u8, y, stages, batch_size=config.batch_size, progress=progress)
        except (KeyboardInterrupt, SystemExit):
            where = f"kept in {config.state}; the same command goes on" if config.state else "not kept: give --state"
            print(f"stopped: {progress.standing(len(y), len(stages))}, {where}", file=sys.stderr)
            raise
        sanity = _sanity(config, seen, x_u8, y) if config.sanity else {}
    n, wall_s = len(y), sum(stage.wall_s for stage in passed)
    clean, clean_interval = accuracy_of(passed[0].survived)
    results = [_result(radius, passed) for radius in radii]
    return {
        "n": n,
        "clean_accuracy": clean,
        "clean_interval": list(clean_interval),
        **(results[0] if len(results) == 1 else {"eps": list(config.radii)}),
        "norm": config.norm,
        "attack": config.attack,
        "restarts": config.restarts,
        "seed": config.seed,
        "results": results,
        "checkpoint": asdict(checkpoint),
        "data": config.data,
        "data_n": len(data),
        "image_size": data.image_size,
        "classifier_size": model.image_size,
        **precision.summary(),
        "batch_size": config.batch_size,
        "wall_s": round(wall_s, 3),
        "images_per_s": round(n / wall_s, 2),
        "warnings": warnings,
        **sanity,
    }


def _result(radius: Radius, passed: list[StageProgress]) -> dict[str, Any]:
    own = passed[radius.stages]
    accuracy, interval = accuracy_of(passed[radius.stages.stop - 1].survived)
    after = {
        label: float(stage.survived.float().mean()) for label, stage in zip(radius.plan.attempts, own, strict=False)
    }
    return {
        "eps": radius.eps,
        "robust_accuracy": accuracy,
        "interval": list(interval),
        "after_each": after,
        "outside_ball": sum(stage.outside for stage in own),
        **{name: radius.plan.settings[name] for name in _PGD_SETTINGS if name in radius.plan.settings},
        "settings": dict(radius.plan.settings),
        "wall_s": round(sum(stage.wall_s for stage in own), 3),
    }


_PGD_SETTINGS = ("steps", "step_size", "random_start")  # where earlier releases had them


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


def _sanity(config: RobustConfig, model: nn.Module, x_u8: Tensor, y: Tensor) -> dict[str, Any]:
    """The checks at the middle one of the radii."""
    eps = config.radii[len(config.radii) // 2]
    found = check_sanity(model, x_u8, y, norm=config.norm, eps=eps, seed=config.seed, batch_size=config.batch_size)
    return {"sanity": asdict(found)}
