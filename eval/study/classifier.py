"""One classifier of a study: what it withstands, and how its input gradients look."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.robust.config import RobustConfig
from eval.robust.run import run_robust
from eval.study.commands import accuracy_radii
from eval.study.config import StudyConfig
from eval.study.inputs import Checkpoint, Inputs
from eval.study.store import Place
from refine.network import together
from robust_models.attacks import frozen_eval, input_gradient
from robust_models.checkpoints.flags import CheckpointFlags, load_classifier
from robust_models.classifier import RobustClassifier
from robust_models.images import to_float
from robust_models.labels import fit_labels
from robust_models.runtime.device import exact_fp32
from robust_models.runtime.device import place as placed
from robust_models.runtime.files import whole_file

PANEL = 8  # images


def run_classifier(
    config: StudyConfig, inputs: Inputs, checkpoint: Checkpoint, device: torch.device, place: Place
) -> dict[str, Any]:
    """Writes place.arrays (the panel: x_u8, y, gradient); gives num_images and accuracies, the clean one first."""
    model, _ = load_classifier(checkpoint.ckpt, checkpoint.spec)
    with exact_fp32():
        _write_panel(inputs, placed(model, device, "fp32"), place)
    if config.data is None:
        return {"num_images": 0, "accuracies": []}
    accuracies, n = [], 0
    for norm, radii in accuracy_radii(config).items():
        place.folder.mkdir(parents=True, exist_ok=True)
        state = place.folder / f"{norm}.json"
        found = run_robust(_robust_config(config, checkpoint, config.data, norm, radii, device, state))
        assert found is not None  # ranks share the jobs of a study, not the images of one
        n = found["n"]
        accuracies += [] if accuracies else [_accuracy("", 0.0, found["clean_accuracy"], found["clean_interval"], "")]
        accuracies += [
            _accuracy(norm, one["eps"], one["robust_accuracy"], one["interval"], _words(one, config))
            for one in found["results"]
            if one["eps"] > 0
        ]
    shutil.rmtree(place.folder)
    return {"num_images": n, "accuracies": accuracies}


def _robust_config(
    config: StudyConfig,
    checkpoint: Checkpoint,
    data: str,
    norm: str,
    radii: tuple[float, ...],
    device: torch.device,
    state: Path,
) -> RobustConfig:
    robust = config.robust
    return RobustConfig(
        ckpt=checkpoint.ckpt,
        **{name: getattr(checkpoint.spec, name) for name in CheckpointFlags.__dataclass_fields__},
        data=data,
        norm=norm,  # type: ignore[arg-type]  (a name, checked there)
        eps=radii,
        steps=robust.steps,
        restarts=robust.restarts,
        limit=robust.limit,
        batch_size=robust.batch_size,
        state=state,
        device=str(device),
    )


def _accuracy(norm: str, eps: float, value: float, interval: list[float], attack: str) -> dict[str, Any]:
    return {"norm": norm, "eps": eps, "value": value, "interval": interval, "attack": attack}


def _words(found: dict[str, Any], config: StudyConfig) -> str:
    runs = "" if config.robust.restarts == 1 else f", {config.robust.restarts} runs"
    return f"PGD-{found['steps']}, step {found['step_size']:g}{runs}"


def _write_panel(inputs: Inputs, model: RobustClassifier, place: Place) -> None:
    x_u8, y = _shown(inputs, model)
    with frozen_eval(model):
        x = to_float(x_u8.to(model.mean.device))
        seen = together(model)
        if y is None:
            y = seen(x).argmax(1)
        gradient = input_gradient(seen, x, y.to(x.device)).cpu()
    with whole_file(place.arrays) as partial, partial.open("wb") as file:
        np.savez(file, x_u8=x_u8.numpy(), y=y.cpu().numpy(), gradient=gradient.numpy())


def _shown(inputs: Inputs, model: RobustClassifier) -> tuple[Tensor, Tensor | None]:
    """The first test images or, without any, those of the first image set; y None: as the classifier sees them."""
    if inputs.data is not None:
        data = inputs.data[:PANEL]
        y = fit_labels(data.y.numpy(), data.class_names, model.class_names, source=data.source)
        return data.x_u8, torch.from_numpy(y)
    images = next(iter(inputs.images.values())).set
    return images.read(0, min(PANEL, len(images))), None
