"""The run: batches in, classifier.safetensors out; killed and started again, it goes on where it stopped."""

import json
import math
import os
import shutil
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robust_models.attacks import PGD
from robust_models.checkpoints import save
from robust_models.classifier import NORMALIZERS, Description, RobustClassifier
from robust_models.datasets import Dataset, load_dataset
from robust_models.errors import UserError
from robust_models.images import to_float
from robust_models.runtime.config import as_plain
from robust_models.runtime.device import pick_device, place
from robust_models.runtime.run_folder import MetricsLog, environment, write_json
from robust_models.runtime.seeds import EVALUATION, generator
from robust_models.threat import ThreatModel
from train.config import TrainConfig
from train.ema import EMA
from train.loaders.resident import ResidentLoader
from train.state import TrainState, load_state, save_state
from train.step import make_optimizer, train_step

CHECKPOINT = "classifier.safetensors"


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs the recipe in config.out and gives its summary: paths, steps, wall time, scores on the held-out images."""
    training, held_out = _split(load_dataset(config.data.path, "train", class_names=config.data.names), config)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    model = place(RobustClassifier.from_description(_description(config, training)), device, config.precision)
    loader = ResidentLoader(training, batch_size=config.batch_size, seed=config.seed, device=device)
    optimizer = make_optimizer(model, config)
    ema = EMA(model, config.ema_decay)
    state = _open_run(config) or TrainState(0, 0.0, -1.0, {}, {}, {}, {})
    if state.step:
        model.load_state_dict(state.model)
        ema.model.load_state_dict(state.ema)
        optimizer.load_state_dict(state.optimizer)

    stepped = _compiled(model, device) if config.compile else model
    total = config.epochs * loader.steps_per_epoch
    started = time.perf_counter() - state.wall_s
    pending: list[tuple[Tensor, Tensor]] = []
    with MetricsLog(config.out, from_step=state.step) as log, _progress_bar(config, state.step, total) as bar:
        for step in range(state.step, total):
            x_u8, y = loader.batch(step)
            model.train()
            pending.append(train_step(stepped, optimizer, x_u8, y, config, step=step, progress=step / total))
            ema.update(model, step)
            bar.update(config.batch_size)

            done = step + 1
            to_validate = done % (loader.steps_per_epoch * config.validate.every_epochs) == 0 or done == total
            if done % config.log_every == 0 or to_validate:  # no row spans a saved state: a resumed run writes the same
                row = _mean(pending, done)
                pending.clear()
                rate = bar.format_dict["rate"] or 0.0
                log.write(done, "train", {**row, "lr": optimizer.param_groups[0]["lr"], "images_per_s": rate})
                bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.3f}")
            if to_validate:
                scores = validate(ema.model, held_out, config, device)
                log.write(done, "validation", scores)
                if _selection(scores) >= state.best:
                    state.best, state.best_scores = _selection(scores), scores
                    save(_described(ema.model, scores), config.out / CHECKPOINT)
                state.step, state.wall_s = done, time.perf_counter() - started
                state.model, state.ema = model.state_dict(), ema.model.state_dict()
                state.optimizer = optimizer.state_dict()
                save_state(config.out, state)
    return {
        "checkpoint": str(config.out / CHECKPOINT),
        "steps": state.step,
        "wall_s": round(state.wall_s, 1),
        "validation": state.best_scores,
    }


def validate(model: RobustClassifier, data: Dataset, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Clean accuracy and, where the recipe has an attack, PGD accuracy (fractions) on the held-out images."""
    if len(data) == 0:
        return {}
    eps, steps = config.attack.eps, config.validate.steps
    attack = PGD(eps, 2.5 * eps / steps, steps, norm=config.attack.norm, random_start=True) if eps > 0 else None
    draws = generator(device, config.seed, EVALUATION, 0)
    clean = robust = 0
    for start in range(0, len(data), 250):
        part = data[start : start + 250]
        x, y = to_float(part.x_u8.to(device)), part.y.to(device)
        clean += _correct(model, x, y)
        robust += _correct(model, attack(model, x, y, generator=draws), y) if attack else 0
    scores = {"n": float(len(data)), "clean_accuracy": clean / len(data)}
    return {**scores, "robust_accuracy": robust / len(data)} if attack else scores


@torch.no_grad()
def _correct(model: RobustClassifier, x: Tensor, y: Tensor) -> int:
    return int((model(x).argmax(1) == y).sum())


def _selection(scores: dict[str, float]) -> float:
    """What "best" means: robust accuracy where there is an attack; with nothing held out, always the latest."""
    return scores.get("robust_accuracy", scores.get("clean_accuracy", math.inf))


def _split(data: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """All but the last data.validation images, and those."""
    kept = len(data) - config.data.validation
    if kept <= 0:
        raise UserError(
            f"data.validation: {config.data.validation} leaves nothing of the {len(data)} images to train on"
        )
    return data[:kept], data[kept:]


def _description(config: TrainConfig, data: Dataset) -> Description:
    return Description(
        arch=config.arch,
        class_names=data.class_names,
        image_size=data.image_size,
        activation=config.activation,
        normalizer=NORMALIZERS[config.normalize],
        threat_model=ThreatModel(config.attack.norm, config.attack.eps) if config.attack.eps > 0 else None,
        recipe={name: value for name, value in as_plain(config).items() if name not in ("out", "device")},
    )


def _described(model: RobustClassifier, scores: dict[str, float]) -> RobustClassifier:
    model.description = replace(model.description, scores={"validation": scores})
    return model


def _open_run(config: TrainConfig) -> TrainState | None:
    """The state to go on from; a folder that holds another run is refused."""
    plain = as_plain(config)
    recorded = config.out / "config.json"
    if recorded.exists():
        old = json.loads(recorded.read_text())["config"]
        changed = [name for name in plain if name not in ("out", "device") and old.get(name) != plain[name]]
        if changed:
            name = changed[0]
            raise UserError(
                f"out: {config.out} holds a run with another {name} ({old.get(name)} there, {plain[name]} now); "
                f"choose another --out, or repeat that run's command to continue it"
            )
    write_json(recorded, {"config": plain, "environment": environment()})
    return load_state(config.out)


def _compiled(model: RobustClassifier, device: torch.device) -> nn.Module:
    """The model compiled; as it is, with a word on stderr, where its code could not be compiled."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        print("compile: no C++ compiler here (g++ or clang++); going on without compiling", file=sys.stderr)
        return model
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    return compiled


def _mean(pending: list[tuple[Tensor, Tensor]], step: int) -> dict[str, float]:
    """Mean loss and accuracy since the last row: the one place where the host waits for the device."""
    loss, accuracy = (torch.stack(values).mean().item() for values in zip(*pending, strict=True))
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} in the {len(pending)} steps up to step {step}; the last good state is kept; "
            f"lower --optimizer.lr or pass --precision fp32"
        )
    return {"loss": loss, "accuracy": accuracy}


def _progress_bar(config: TrainConfig, step: int, total: int) -> "tqdm[Any]":
    return tqdm(
        total=total * config.batch_size,
        initial=step * config.batch_size,
        unit="img",
        unit_scale=True,
        desc="train",
        smoothing=0.05,
        mininterval=1,
    )
