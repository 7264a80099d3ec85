"""Robust accuracy as a function: of any classifier, on images in memory or on disk."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.robust.attacks import Budget, plan_attack
from eval.robust.stages import Ball, binomial_interval, chain, check_finite, device_of, run_stages
from refine.network import together
from robust_models import Dataset, RobustClassifier, UserError, load_dataset, to_float
from robust_models.attacks import frozen_eval
from robust_models.checkpoints.flags import load_classifier
from robust_models.labels import fit_labels
from robust_models.runtime.device import exact_fp32, pick_device, place
from robust_models.threat import NormName, check_ball

Labelled = str | PathLike[str] | Dataset | tuple[Tensor | np.ndarray, Tensor | np.ndarray]
LOOKED_AT = 64  # images whose outputs are checked for being probabilities


@dataclass(frozen=True)
class RobustAccuracy:
    """Shares of n images with their 95 % intervals (Wilson 1927), and which images they are."""

    n: int
    clean: float
    clean_interval: tuple[float, float]
    robust: float  # right as they are and under every run of the attack
    robust_interval: tuple[float, float]
    correct: Tensor  # bool [N]: right as they are
    withstood: Tensor  # bool [N]: and under attack
    settings: Mapping[str, Any]  # of the attack
    warnings: tuple[str, ...] = ()


def robust_accuracy(
    model: nn.Module | str | PathLike[str],
    data: Labelled,
    *,
    eps: float,
    norm: NormName = "l2",
    attack: str = "pgd",
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    early_stop: bool = True,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    device: str | None = None,
) -> RobustAccuracy:
    """Clean and robust accuracy of any classifier: what `bigroc eval robust` measures, for one eps.

    model: a module from pixels [N,3,H,W] in [0,1] to logits, or what robust_models.load takes (a name or a file).
    data: (x, y) with x [N,3,H,W] uint8 or float in [0,1] and y [N] class indices; a Dataset; or the argument of
    load_dataset. eps, step_size: pixels are in [0,1]. attack: pgd, apgd-ce, apgd, fab, square, autoattack or
    LIBRARY:CLASS. The other settings are the command's (see RobustConfig); None leaves a choice to the attack. device:
    None leaves a module where it is. Images of another size than a RobustClassifier's are resized inside the network:
    the attack, and eps, stay in the images' own pixels. Deterministic for a seed. UserError for whatever does not fit
    and for logits that are not finite.
    """
    try:
        check_ball(norm, eps)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(model, nn.Module):
        model = place(load_classifier(str(model))[0], pick_device(device or "auto"), "fp32")
    elif device is not None:
        model = model.to(pick_device(device))
    x, y = images_and_labels(data, model, limit)
    seen = together(model)
    with exact_fp32():
        sample = first_logits(seen, x)
    _check_labels(y, sample.shape[1])
    budget = Budget(norm, eps, sample.shape[1], steps, step_size, random_start, restarts, seed, early_stop)
    plan = plan_attack(attack, budget)
    stages, _ = chain({Ball(norm, eps): plan})
    with exact_fp32():
        passed = run_stages(seen, x, y, stages, batch_size=batch_size)
    correct, withstood = passed[0].survived, passed[-1].survived
    shares = [accuracy_of(mask) for mask in (correct, withstood)]
    warnings = tuple(probability_warnings(sample))
    return RobustAccuracy(len(y), *shares[0], *shares[1], correct, withstood, plan.settings, warnings)


def images_and_labels(data: Labelled, model: nn.Module, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The first so many x [N,3,H,W] uint8 or float in [0,1], and y [N] int64 as indices into the model's classes."""
    if isinstance(data, str | PathLike):
        data = load_dataset(str(data), "test", limit=limit)
    if isinstance(data, Dataset):
        data = data[:limit]
        if not isinstance(model, RobustClassifier):
            return data.x_u8, data.y
        y = fit_labels(data.y.numpy(), data.class_names, model.class_names, source=data.source)
        return data.x_u8, torch.from_numpy(y)
    x, y = (torch.as_tensor(part)[:limit].detach().cpu() for part in data)
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise UserError(f"data: x is {x.dtype} {list(x.shape)}; expected [N,3,H,W] of uint8 or floats in [0,1]")
    if x.is_floating_point() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise UserError(f"data: x runs from {low:.6g} to {high:.6g}; expected uint8, or floats in [0,1]")
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(f"data: y is {y.dtype} {list(y.shape)}; expected a class index for each of {len(x)} images")
    return x, y.long()


def _check_labels(y: Tensor, num_classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise UserError(f"data: labels run from {low} to {high}, but the classifier has {num_classes} classes")


def first_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Those of the first 64 images of x, [n,classes]. UserError where one is not finite."""
    return all_logits(model, [x[:LOOKED_AT]])


def all_logits(model: nn.Module, batches: Iterable[Tensor], when: str = "clean") -> Tensor:
    """Those of all images of the batches, each uint8 or float in [0,1] [n,3,H,W], on the CPU: [N,classes].

    UserError where one is not finite.
    """
    device, found, done = device_of(model), [], 0
    with frozen_eval(model), torch.no_grad():
        for x in batches:
            logits = model(to_float(x.to(device)))
            check_finite(logits, torch.arange(done, done + len(logits)), when)
            found.append(logits.cpu())
            done += len(logits)
    return torch.cat(found)


def probability_warnings(outputs: Tensor) -> list[str]:
    """A warning where outputs [n,classes] are a softmax's: its gradient vanishes where the network is certain."""
    in_range = bool(((outputs >= 0) & (outputs <= 1)).all())
    if outputs.shape[1] < 2 or not in_range or not bool(((outputs.sum(dim=1) - 1).abs() < 1e-3).all()):
        return []
    return [
        "model: its outputs are probabilities, not logits; attacks by gradient are weak against a softmax, and the "
        "robust accuracy too high: give the network without its last softmax"
    ]


def accuracy_of(right: Tensor) -> tuple[float, tuple[float, float]]:
    """The share of True in bool [N], and its interval."""
    successes = int(right.sum())
    return successes / len(right), binomial_interval(successes, len(right))
