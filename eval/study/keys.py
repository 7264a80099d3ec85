"""What each result depends on, by content: equal keys mean equal results, whatever files and classifiers are called."""

import functools
from pathlib import Path
from typing import Any

import torch

from eval.study.config import StudyConfig
from eval.study.inputs import Checkpoint, Images, Inputs
from eval.study.results import Axes
from robust_models.checkpoints import find
from robust_models.checkpoints.flags import reading
from robust_models.features import FeatureExtractor
from robust_models.images.open import fingerprint
from robust_models.runtime.config import as_plain, as_stated
from robust_models.runtime.device import decide_precision
from robust_models.runtime.files import sha256_of
from robust_models.runtime.version import versions
from train.config import TrainConfig
from train.state import FREE_TO_CHANGE

FORMAT = 2  # raised whenever the same key would mean other results
DEFAULTS = 1  # of trainings: raised whenever the default of a field that was there changes
Depends = dict[str, Any]  # JSON-ready
_versions = functools.cache(versions)  # asked for every job, again and again


def cell_depends(
    config: StudyConfig, inputs: Inputs, axes: Axes, checkpoint: Checkpoint | None, device: torch.device
) -> Depends:
    """All that the result of a cell depends on; checkpoint: None where its images stay as they are."""
    depends = {
        "format": FORMAT,
        "images": drawn(inputs.images[axes.images], axes.seed),
        "judges": [
            {
                **_features(judge.features),
                "reference": judge.reference.sha256,
                "real": judge.real and judge.real.sha256,
            }
            for judge in inputs.judges
        ],
        "device": device.type,
        "versions": _versions(),
    }
    if checkpoint is None:
        return depends
    settings = axes.settings(real=None)  # the judges' real images are in the key
    file = Path(axes.targets)
    return depends | {
        "classifier": classifier_identity(checkpoint),
        "refine": settings | ({"targets file": sha256_of(file)} if file.is_file() else {}),
        "precision": decide_precision(config.precision, device, "attack").precision,
    }


def classifier_depends(config: StudyConfig, inputs: Inputs, checkpoint: Checkpoint, device: torch.device) -> Depends:
    """All that a classifier's accuracies and panel depend on."""
    shown = inputs.data_sha256 or next(iter(inputs.images.values())).sha256
    return {
        "format": FORMAT,
        "classifier": classifier_identity(checkpoint),
        "data": shown,
        "robust": {name: value for name, value in as_plain(config.robust).items() if name != "limit"},
        "device": device.type,
        "versions": _versions(),
    }


def reference_depends(sha256: str, features: FeatureExtractor, part: str, device: torch.device) -> Depends:
    """part: what is taken of the reference, as eval.quality.collect calls it."""
    return {
        "format": FORMAT,
        "reference": sha256,
        "part": part,
        "judge": _features(features),
        "device": device.type,
        "versions": _versions(),
    }


def training_depends(config: TrainConfig) -> Depends:
    """Not the versions, nor fields at their defaults: an upgrade trains no classifier again that is there."""
    plain = {name: value for name, value in as_stated(config).items() if name not in FREE_TO_CHANGE}
    plain["defaults"] = DEFAULTS
    for name, source in (
        ("data", config.data.path),
        ("generated", config.data.generated),
        ("start", config.energy.start),
    ):
        path = None if source is None else Path(source)
        if path is not None and path.is_file():
            plain[f"{name} sha256"] = sha256_of(path)
        elif path is not None and path.is_dir():
            plain[f"{name} fingerprint"] = fingerprint(path)
    if config.init is not None:
        plain["init sha256"] = sha256_of(find(config.init))
    return plain


def drawn(images: Images, seed: int) -> Depends:
    """An image set, or what a seed draws of it."""
    if images.limit is None:
        return {"sha256": images.sha256}
    return {"sha256": images.sha256, "limit": images.limit, "seed": seed}


def classifier_identity(checkpoint: Checkpoint) -> Depends:
    """The file, and what the study says about it beyond what the file does."""
    flags = reading(checkpoint.spec)
    flags["class_names"] = list(checkpoint.description.class_names)
    return {"sha256": checkpoint.sha256, **flags}


def _features(features: FeatureExtractor) -> Depends:
    """A classifier is its file, whatever it is called."""
    kind = features.name.partition(":")[0]
    return {"features": kind, "protocol": features.protocol, "sha256": features.source.sha256}
