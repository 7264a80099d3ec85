"""Everything that changes during a run, and what is due when."""

import os
import shutil
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn

from robust_models.attacks import PGD
from robust_models.checkpoints import save
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.device import pick_device, place
from train.config import TrainConfig
from train.ema import EMA
from train.start import make_model, open_data, open_loader
from train.state import Progress, TrainState, claim, save_state
from train.step import Measured, attack_at, make_optimizer, mean, train_step
from train.validation import overfitting, picture, selection, validate


class Run:
    """UserError for bad input, before config.out is touched."""

    def __init__(self, config: TrainConfig) -> None:
        data, self.held_out = open_data(config)
        device = pick_device(config.device)
        torch.manual_seed(config.seed)
        self.config = config
        self.checkpoint = config.out / "classifier.safetensors"
        self.model = place(make_model(config, data.class_names, data.image_size), device, config.precision)
        self.loader = open_loader(data, config, device)
        self.optimizer = make_optimizer(self.model, config)
        self.ema = EMA(self.model, config.ema_decay)
        self.total = config.epochs * self.loader.steps_per_epoch
        self.progress = Progress()
        self.pending: list[Measured] = []  # since the last row of metrics
        if state := claim(config):
            self.model.load_state_dict(state.model)
            self.ema.model.load_state_dict(state.ema)
            self.optimizer.load_state_dict(state.optimizer)
            self.progress = state.progress
            self.pending = [Measured(*(value.to(device) for value in values)) for values in state.pending]
        self.stepped = _compiled(self.model, device) if config.compile else self.model

    def step(self, x_u8: Tensor, y: Tensor) -> None:
        self.model.train()
        measured = train_step(
            self.stepped,
            self.optimizer,
            x_u8,
            y,
            self.config,
            num_classes=self.model.description.num_classes,
            attack=self.attack,
            step=self.progress.step,
            progress=self.progress.step / self.total,
        )
        self.ema.update(self.model, self.progress.step)
        self.pending.append(measured)
        self.progress.step += 1

    @property
    def attack(self) -> PGD:
        share = self.progress.step / self.total
        return attack_at(self.config.attack, share, least_steps=self.progress.least_attack_steps)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @property
    def row_due(self) -> bool:
        return self.progress.step % self.config.log_every == 0 or self.validation_due

    @property
    def validation_due(self) -> bool:
        step, every = self.progress.step, self.config.validate.every_epochs * self.loader.steps_per_epoch
        return step > self.progress.validated and (step % every == 0 or step == self.total)

    @property
    def guard_due(self) -> bool:
        every = self.config.guard.every_steps
        return every > 0 and self.progress.step % every == 0 and self.attack.steps > 0

    @property
    def finished(self) -> bool:
        patience = self.config.validate.stop_after
        return self.progress.step == self.total or 0 < patience <= self.progress.without_better

    def take_pending(self) -> dict[str, float]:
        """Means since the last row: the one place between evaluations where the host waits for the device."""
        row = mean(self.pending, self.progress.step)
        self.pending.clear()
        return row

    def validate(self) -> tuple[dict[str, float], Tensor | None]:
        """Scores on the held-out images, and a picture of some of them, attacked."""
        model = self.ema.model
        return validate(model, self.held_out, self.config), picture(model, self.held_out, self.config)

    def judge(self, scores: dict[str, float]) -> None:
        """Keeps the classifier if none before it was better."""
        self.progress.validated = self.progress.step
        self.progress.without_better += 1
        if selection(scores) >= self.progress.best:
            self.progress.best, self.progress.best_scores = selection(scores), scores
            self.progress.without_better = 0
            model = self.ema.model
            model.description = replace(model.description, scores={"validation": scores})
            save(model, self.checkpoint)

    def guard(self) -> dict[str, float]:
        """Doubles the attack's steps if the network has learnt to withstand no more than this attack."""
        attack = self.attack
        row = overfitting(self.model, self.held_out, attack, self.config)
        if row["training_attack"] - row["pgd"] > self.config.guard.gap:
            self.progress.least_attack_steps = 2 * attack.steps
            print(
                f"catastrophic overfitting at step {self.progress.step}: {row['training_attack']:.1%} right under the "
                f"training attack, {row['pgd']:.1%} under PGD; going on with {2 * attack.steps} steps",
                file=sys.stderr,
            )
        return row

    def save(self, wall_s: float) -> None:
        """The state to go on from. UserError, naming the step, where it is not finite or finds no room."""
        if self.pending:
            mean(self.pending, self.progress.step)
        self.progress.wall_s = wall_s
        state = TrainState(
            self.progress,
            self.model.state_dict(),
            self.ema.model.state_dict(),
            self.optimizer.state_dict(),
            [tuple(measured) for measured in self.pending],
        )
        try:
            save_state(self.config.out, state)
        except UserError as error:
            raise UserError(f"step {self.progress.step}: {error}") from error


def _compiled(model: RobustClassifier, device: torch.device) -> nn.Module:
    """The model compiled; as it is, with a word on stderr, where its code could not be compiled."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        print("compile: no C++ compiler here (g++ or clang++); going on without compiling", file=sys.stderr)
        return model
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    return compiled
