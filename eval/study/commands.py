"""Command lines that repeat a figure of a study, for a shell."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.study.config import ClassifierSpec, StudyConfig
from eval.study.inputs import Checkpoint
from eval.study.results import Axes
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.features import FeatureExtractor


def refinement(
    config: StudyConfig,
    axes: Axes,
    checkpoint: Checkpoint | None,
    precision: str,
    images: Path,
    judge: FeatureExtractor,
    reference: Path,
    *,
    real: Path | None = None,
    judges: Sequence[str] = (),
    by_kernel: bool = False,
) -> str:
    """Makes a cell's images and their distance and score again. real, judges: see Axes.settings."""
    judged = images if checkpoint is None else Path("refined.npz")
    metrics = ",".join(["fid", *(["kid"] if by_kernel else []), *([] if judge.num_classes is None else ["is"])])
    measured = {"images": judged, "reference": reference, "features": judge.name, "metrics": metrics}
    inception = judge.name.startswith("inception")
    network = {"weights": config.weights, "protocol": config.protocol} if inception else {}
    quality = shell("bigroc eval quality", {**measured, **network})
    if checkpoint is None:
        return quality
    settings = axes.settings(real, judges)
    places = {"ckpt": checkpoint.ckpt, "input": images, "out": judged}
    flags = _flags(checkpoint.spec)
    return f"{shell('bigroc refine', {**places, **settings, 'precision': precision, **flags})} && {quality}"


def accuracy(config: StudyConfig, checkpoint: Checkpoint, data: str | None) -> str:
    """Measures a classifier's accuracies again; "" where there are none."""
    if data is None:
        return ""
    robust = config.robust
    settings = {"steps": robust.steps, "restarts": robust.restarts, "limit": robust.limit}
    return " && ".join(
        shell(
            "bigroc eval robust",
            {"ckpt": checkpoint.ckpt, "data": data, "norm": norm, "eps": radii, **settings, **_flags(checkpoint.spec)},
        )
        for norm, radii in accuracy_radii(config).items()
    )


def accuracy_radii(config: StudyConfig) -> dict[str, tuple[float, ...]]:
    """By norm; where none is asked for, only the clean accuracy is measured."""
    return config.robust.eps or {"l2": (0.0,)}


def _flags(spec: ClassifierSpec) -> dict[str, Any]:
    """What is said about a checkpoint beyond what its file says."""
    usual = CheckpointFlags()
    given = {name: getattr(spec, name) for name in CheckpointFlags.__dataclass_fields__}
    return {name: value for name, value in given.items() if value != getattr(usual, name)}


def shell(program: str, fields: Mapping[str, Any]) -> str:
    """The program with each field as a flag; those that are None stay out, True is a flag alone."""
    words = program.split()
    for name, text in as_texts(fields).items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if fields[name] is True else [flag, text]
    return shlex.join(words)


def as_texts(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fields that are not None as a person would type them."""
    return {name: _text(value) for name, value in fields.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)
