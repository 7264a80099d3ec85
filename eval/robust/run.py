"""The `robust` measurement: from a classifier and labelled images to the figures and all that they depend on."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.robust.accuracy import accuracy_of, all_logits, first_logits, images_and_labels, probability_warnings
from eval.robust.attacks import Plan, plan_attack
from eval.robust.calibration import measure_calibration
from eval.robust.config import RobustConfig
from eval.robust.corruptions import CorruptionFiles, open_corruptions
from eval.robust.detection import detection
from eval.robust.progress import Progress, StageProgress, StoredProgress
from eval.robust.sanity import check_sanity
from eval.robust.stages import Ball, Radius, Stage, chain, run_stages
from refine.network import together
from robust_models import ImageSet, RobustClassifier, open_images
from robust_models.checkpoints.flags import Source, load_classifier, reading
from robust_models.datasets import AnyDataset, open_dataset
from robust_models.runtime.device import decide_precision, exact_fp32, place
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.files import exclusive, sweep_partials


def run_robust(config: RobustConfig) -> dict[str, Any] | None:
    """Clean and robust accuracy (fractions) of a classifier on a data set, with what the config asks for beside them.

    Ready for JSON; None on the ranks of a torchrun job that only helped the first one. With a state, no other process
    may write it meanwhile; what was stopped goes on from it, with any number of ranks. UserError for bad input.
    """
    with join() as ranks, _state_held(config.state if ranks.is_first else None):
        return _measured(config, ranks)


@contextmanager
def _state_held(state: Path | None) -> Iterator[None]:
    """Keeps other processes from the state, and removes what killed ones left half written."""
    if state is None:
        yield
        return
    with exclusive(state, "state"):
        sweep_partials(state.parent, state.name)
        yield


@dataclass(frozen=True)
class Inputs:
    """All that is opened before anything is computed, so that a mistake in it ends the command at once."""

    model: RobustClassifier
    checkpoint: Source
    data: AnyDataset
    x_u8: Tensor
    y: Tensor
    others: ImageSet | None
    corruptions: CorruptionFiles | None

    @classmethod
    def open(cls, config: RobustConfig) -> "Inputs":
        """What the config names. UserError for what cannot be opened."""
        model, checkpoint = load_classifier(config.ckpt, config)
        data = open_dataset(config.data, "test", limit=config.limit)
        x_u8, y = images_and_labels(data.in_memory(), model)
        others = None if config.ood is None else open_images(config.ood, limit=config.limit)
        corruptions = None if config.corruptions is None else open_corruptions(config.corruptions, model.class_names)
        return cls(model, checkpoint, data, x_u8, y, others, corruptions)


def _measured(config: RobustConfig, ranks: Ranks) -> dict[str, Any] | None:
    """Attacks and corruptions by all ranks; by the first one alone what is a pass or two over the images."""
    device = ranks.device(config.device)
    inputs = Inputs.open(config)
    model, x_u8, y, corruptions = inputs.model, inputs.x_u8, inputs.y, inputs.corruptions
    balls, origin = config.balls(model.description, x_u8[0].numel())
    plans = {ball: plan_attack(config.attack, config.budget(ball, len(model.class_names))) for ball in balls}
    attacked, radii = chain(plans)
    stages = attacked + ([] if corruptions is None else corruptions.stages(config.limit))
    precision = decide_precision(config.precision, device, "measurement")
    seen = together(place(model, device, precision.precision))
    with exact_fp32():
        warnings = probability_warnings(first_logits(seen, x_u8))
        for warning in warnings if ranks.is_first else ():
            print(f"warning: {warning}", file=sys.stderr)
        passed = _run(config, seen, x_u8, y, stages, _progress(config, inputs, plans, ranks), ranks)
        if not ranks.is_first:
            return None
        sanity = _sanity(config, balls, seen, x_u8, y) if config.sanity else {}
        outputs = _outputs(config, seen, inputs)
    corrupted = {} if corruptions is None else {"corruptions": corruptions.summary(passed[len(attacked) :])}
    n, wall_s = len(y), sum(stage.wall_s for stage in passed[: len(attacked)])
    clean, clean_interval = accuracy_of(passed[0].survived)
    results = [_result(radius, passed) for radius in radii]
    return {
        "n": n,
        "clean_accuracy": clean,
        "clean_interval": list(clean_interval),
        **(results[0] if len(results) == 1 else {"eps": [ball.eps for ball in balls]}),
        "norm": _norms(balls),
        "balls_from": origin,
        "attack": config.attack,
        "restarts": config.restarts,
        "seed": config.seed,
        "results": results,
        **_worst_case(radii, passed),
        "checkpoint": asdict(inputs.checkpoint),
        "data": config.data,
        "data_n": inputs.data.total,
        "image_size": inputs.data.image_size,
        "classifier_size": model.image_size,
        **precision.summary(),
        "batch_size": config.batch_size,
        "wall_s": round(wall_s, 3),
        "images_per_s": round(n / wall_s, 2),
        "warnings": warnings,
        **sanity,
        **outputs,
        **corrupted,
    }


def _run(
    config: RobustConfig,
    model: nn.Module,
    x_u8: Tensor,
    y: Tensor,
    stages: Sequence[Stage],
    progress: Progress,
    ranks: Ranks,
) -> list[StageProgress]:
    """run_stages, which says what stands when it begins and when it is stopped."""
    if config.state is not None and progress.stages and ranks.is_first:
        print(f"state: {progress.standing(len(stages))} ({config.state})", file=sys.stderr)
    try:
        return run_stages(model, x_u8, y, stages, batch_size=config.batch_size, progress=progress, ranks=ranks)
    except (KeyboardInterrupt, SystemExit):
        where = f"kept in {config.state}; the same command goes on" if config.state else "not kept: give --state"
        if ranks.is_first:
            print(f"stopped: {progress.standing(len(stages))}, {where}", file=sys.stderr)
        raise


def _norms(balls: Iterable[Ball]) -> str | list[str]:
    """The norm of all of them, or the norms in their order."""
    norms = list(dict.fromkeys(ball.norm for ball in balls))
    return norms[0] if len(norms) == 1 else norms


def _worst_case(radii: list[Radius], passed: list[StageProgress]) -> dict[str, Any]:
    """Right in every ball: where there are several norms, less than in any of them."""
    if len({radius.ball.norm for radius in radii}) == 1:
        return {}
    survived = torch.stack([passed[radius.last].survived for radius in radii]).all(0)
    accuracy, interval = accuracy_of(survived)
    return {"worst_case": {"robust_accuracy": accuracy, "interval": list(interval)}}


def _outputs(config: RobustConfig, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What the clean images' logits say of themselves: calibration, and against other images."""
    others, found = inputs.others, {}
    if not config.calibration and others is None:
        return found
    logits = all_logits(model, inputs.x_u8.split(config.batch_size))
    if config.calibration:
        found["calibration"] = asdict(measure_calibration(logits, inputs.y, seed=config.seed))
    if others is not None:
        batches = (x for _, x in others.batches(config.batch_size))
        areas = detection(logits, all_logits(model, batches, "ood"))
        found["ood"] = {
            "path": str(config.ood),
            "n": len(others),
            "image_size": list(others.size),
            "auroc": {name: area.value for name, area in areas.items()},
            "interval": {name: list(area.interval) for name, area in areas.items()},
        }
    return found


def _result(radius: Radius, passed: list[StageProgress]) -> dict[str, Any]:
    own = passed[radius.stages]
    accuracy, interval = accuracy_of(passed[radius.last].survived)
    after = {
        label: float(stage.survived.float().mean()) for label, stage in zip(radius.plan.attempts, own, strict=False)
    }
    return {
        "norm": radius.ball.norm,
        "eps": radius.ball.eps,
        "robust_accuracy": accuracy,
        "interval": list(interval),
        "after_each": after,
        "outside_ball": sum(stage.outside for stage in own),
        **{name: radius.plan.settings[name] for name in _PGD_SETTINGS if name in radius.plan.settings},
        "settings": dict(radius.plan.settings),
        "wall_s": round(sum(stage.wall_s for stage in own), 3),
    }


_PGD_SETTINGS = ("steps", "step_size", "random_start")  # where earlier releases had them


def _progress(config: RobustConfig, inputs: Inputs, plans: Mapping[Ball, Plan], ranks: Ranks) -> Progress:
    """Where --state left off, on every rank; the first one alone goes on writing it."""
    if config.state is None:
        return Progress()
    progress = _stored_progress(config.state, config, inputs, plans) if ranks.is_first else Progress()
    stages = ranks.share(progress.stages)
    return progress if ranks.is_first else Progress(stages)


def _stored_progress(state: Path, config: RobustConfig, inputs: Inputs, plans: Mapping[Ball, Plan]) -> Progress:
    """What the state holds; its fingerprint is all that the result depends on, but for the device's rounding."""
    x_u8, y, corruptions = inputs.x_u8, inputs.y, inputs.corruptions
    norms = _norms(plans)
    fingerprint = {
        "checkpoint": inputs.checkpoint.sha256,
        **reading(config),
        "data": hashlib.sha256(x_u8.numpy().tobytes() + y.numpy().tobytes()).hexdigest(),
        "n": len(y),
        "norm": norms if isinstance(norms, str) else [ball.norm for ball in plans],
        "eps": [ball.eps for ball in plans],
        "attack": config.attack,
        "settings": dict(list(plans.values())[-1].settings),
        "restarts": config.restarts,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "precision": inputs.model.precision,
        "corruptions": None if corruptions is None else [corruptions.fingerprint, config.limit],
    }
    return StoredProgress.open(state, fingerprint)


def _sanity(config: RobustConfig, balls: list[Ball], model: nn.Module, x_u8: Tensor, y: Tensor) -> dict[str, Any]:
    """The checks in the middle one of the first norm's balls."""
    first = [ball for ball in balls if ball.norm == balls[0].norm]
    ball = first[len(first) // 2]
    found = check_sanity(model, x_u8, y, norm=ball.norm, eps=ball.eps, seed=config.seed, batch_size=config.batch_size)
    return {"sanity": asdict(found)}
