"""The `robust` measurement: from a config to the figures and all that they depend on."""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eval.config import RobustConfig
from eval.exact import exact_fp32
from eval.provenance import load_classifier
from eval.robustness import binomial_interval, measure_robustness
from eval.seeded_pgd import SeededPGD
from robust_models import PGD, Dataset, RobustClassifier, UserError, load_dataset
from robust_models.labels import fit_labels
from robust_models.runtime.device import pick_device, place


def run_robust(config: RobustConfig) -> dict[str, Any]:
    """Clean and robust accuracy (fractions) of a classifier on a data set, ready for JSON. UserError for bad input."""
    device = pick_device(config.device)
    model, checkpoint = load_classifier(config.ckpt, arch=config.arch, normalize=config.normalize)
    data = load_dataset(config.data, "test")
    y = _labels(data, model)
    model = place(model, device, config.precision)
    attack = PGD(
        config.eps, config.resolved_step_size, config.steps, norm=config.norm, random_start=config.random_start
    )
    attempts = [SeededPGD(attack, config.seed, restart) for restart in range(config.restarts)]

    started = time.perf_counter()
    with exact_fp32():
        outcome = measure_robustness(
            model, data.x_u8[: config.limit], y[: config.limit], attempts, batch_size=config.batch_size
        )
    wall_s = time.perf_counter() - started
    n = len(outcome.correct)
    return {
        "n": n,
        **_accuracy("clean_accuracy", "clean_interval", outcome.correct),
        **_accuracy("robust_accuracy", "interval", outcome.robust),
        "norm": config.norm,
        "eps": config.eps,
        "attack": config.attack,
        "steps": config.steps,
        "step_size": config.resolved_step_size,
        "restarts": config.restarts,
        "random_start": config.random_start,
        "seed": config.seed,
        "checkpoint": asdict(checkpoint),
        "data": config.data,
        "data_n": len(data),
        "precision": model.precision,
        "wall_s": round(wall_s, 3),
        "images_per_s": round(n / wall_s, 2),
    }


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
