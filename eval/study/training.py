"""Classifiers that a study has trained for itself: python -m train's own run, in the study's folder."""

from pathlib import Path
from typing import Any

from eval.study.config import ClassifierSpec, overlaid
from robust_models.errors import UserError
from robust_models.runtime.config import read_recipe, resolve
from train.config import TrainConfig

CHECKPOINT = "classifier.safetensors"


def train_config(spec: ClassifierSpec, out: Path, device: str) -> TrainConfig:
    """The recipe with the study's changes. UserError, naming the classifier, where they do not fit."""
    assert spec.train is not None
    try:
        values = overlaid(read_recipe(spec.train), spec.changes)
        return resolve(TrainConfig, {"device": device, **values, "out": str(out)})
    except UserError as error:
        raise UserError(f"classifiers.{spec.name}: {str(error).replace('--config', 'train', 1)}") from error


def run_training(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on where a killed run stopped; gives train's summary."""
    from train.loop import train

    summary = train(config)
    assert summary is not None
    return summary
