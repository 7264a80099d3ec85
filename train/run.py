"""Everything that changes during a run, and what is due when."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_models.attacks import PGD
from robust_models.checkpoints import save
from robust_models.errors import UserError
from robust_models.runtime.device import decide_precision, place
from robust_models.runtime.distributed import Ranks
from train.batch_norm import freeze_batch_norms, share_batch_norms
from train.config import TrainConfig
from train.copies import EMA, Compiled, compiles, make_twin
from train.parallel import ALONE
from train.start import make_model, open_data, open_loader, warnings
from train.state import Progress, TrainState, claim, save_state
from train.step import Measured, attack_at, make_optimizer, mean, train_step
from train.validation import Together, overfitting, picture, selection, validate

if TYPE_CHECKING:
    from train.energy import Energy
    from train.refining import Refining


@dataclass(frozen=True)
class Findings:
    """What is due at a step, in numbers; None where it is not."""

    train: dict[str, float] | None  # means over the steps since the last row of metrics; of energy, as it now stands
    guard: dict[str, float] | None
    scores: dict[str, float] | None  # on the held-out images
    shown: Tensor | None  # a picture of some of them, attacked
    made: Tensor | None = None  # objective energy: images of each class that the classifier makes


class Run:
    """UserError for bad input, before config.out is touched. Every rank has one; the first one writes."""

    def __init__(self, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        data, self.held_out = open_data(config)
        device = ranks.device(config.device)
        torch.manual_seed(config.seed)
        self.config, self.ranks = config, ranks
        self.checkpoint, self.refiner = config.out / "classifier.safetensors", config.out / "refiner.safetensors"
        self.precision = decide_precision(config.precision, device, "training")
        model = make_model(config, data.class_names, data.image_size)
        self.model = place(model, device, self.precision.precision)
        if ranks.world > 1:
            share_batch_norms(self.model)
        self.loader = open_loader(data, config, device, ranks)
        self.refining = self._open_refining()
        self.optimizer = make_optimizer(self.model, config)
        self.ema = EMA(self.model, config.ema_decay)
        self.total = config.epochs * self.loader.steps_per_epoch
        self.warnings = warnings(config, len(data), len(self.held_out), self.total)
        self.progress = Progress()
        self.pending: list[Measured] = []  # since the last row of metrics
        if state := ranks.share(claim(config, self.precision, self.warnings) if ranks.is_first else None):
            self.model.load_state_dict(state.model)
            self.ema.model.load_state_dict(state.ema)
            self.optimizer.load_state_dict(state.optimizer)
            self.progress = state.progress
            self.pending = [Measured(*(value.to(device) for value in values)) for values in state.pending]
        self.energy = self._open_energy()
        self.twin = make_twin(self.model, config, device)
        self.compiled = Compiled(self.model, self.optimizer, device) if compiles(config, device, self.total) else None
        self.saved_at = time.monotonic()
        self.restart_clock()

    def step(self, x_u8: Tensor, y: Tensor) -> None:
        """One optimizer step on this rank's part of the batch."""
        self.model.train()
        if self.energy:
            freeze_batch_norms(self.model)
        if self.twin:
            self.twin.refresh()
        share = self.progress.step / self.total
        step = partial(
            train_step,
            optimizer=self.optimizer,
            x_u8=x_u8,
            y=y,
            config=self.config,
            num_classes=self.model.description.num_classes,
            attack=self.attack,
            step=self.progress.step,
            progress=share,
            victim=self.twin.model if self.twin else None,
            ranks=self.ranks,
            energy=self.energy,
        )
        measured = self.compiled.run(step, alone=self.ranks.world == 1) if self.compiled else step(self.model)
        if self.energy:
            self.energy.note(share)
        self.ema.update(self.model, self.progress.step)
        self.pending.append(measured)
        self.progress.step += 1

    def restart_clock(self) -> None:
        """The seconds of the run go on from here."""
        self.started = time.monotonic() - self.progress.wall_s

    @property
    def attack(self) -> PGD:
        """The attack of the next step."""
        share = self.progress.step / self.total
        return attack_at(self.config.attack, share, least_steps=self.progress.least_attack_steps)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def outstanding(self) -> bool:
        """Whether what is due after the last step is still to do: `measure`, then `apply`."""
        return self.progress.reported < self.progress.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or validate.stop_after evaluations in turn have brought nothing better."""
        patience = self.config.validate.stop_after
        return self.progress.step == self.total or 0 < patience <= self.progress.without_better

    def measure(self, between: Callable[[], None]) -> Findings:
        """Measures what is due and changes nothing: it may be dropped halfway. `between`: see Together."""
        config, step, together = self.config, self.progress.step, Together(self.ranks, between)
        validation = step % (config.validate.every_epochs * self.loader.steps_per_epoch) == 0 or step == self.total
        guard = config.guard.every_steps > 0 and step % config.guard.every_steps == 0 and self.attack.steps > 0
        row = step % config.log_every == 0 or validation
        return Findings(
            # The one place between evaluations where the host waits for the device (energy's steps wait, too).
            train=mean(self.pending, step) | self.progress.energy if row else None,
            guard=overfitting(self.model, self.held_out, self.attack, config, together) if guard else None,
            scores=self._scores(together) if validation else None,
            shown=picture(self.ema.model, self.held_out, config) if validation and self.ranks.is_first else None,
            made=self._made() if validation and self.ranks.is_first else None,
        )

    def apply(self, findings: Findings) -> None:
        """Draws the consequences; the state is saved after an evaluation, and when the last one saved is old."""
        if findings.train is not None:
            self.pending.clear()
        if findings.guard is not None:
            self._strengthen_attack(findings.guard)
        if findings.scores is not None:
            self._keep_if_best(findings.scores)
        self.progress.reported = self.progress.step
        if findings.scores is not None or time.monotonic() - self.saved_at >= 60 * self.config.save_minutes:
            self.save()

    def _open_energy(self) -> "Energy | None":
        if self.config.objective.name != "energy":
            return None
        from train.energy import Energy

        return Energy.open(self.config, self.model, self.progress)

    def _open_refining(self) -> "Refining | None":
        if self.config.validate.refine.images is None:
            return None
        from train.refining import Refining

        return Refining.open(self.config, self.held_out, self.model.device)

    def _scores(self, together: Together) -> dict[str, float]:
        """On the held-out images; how near them those are that the classifier refines, and of objective energy those
        that it makes.
        """
        scores = validate(self.ema.model, self.held_out, self.config, together)
        if self.refining:
            scores |= self.refining.scores(self.ema.model, together)
        if self.energy:
            # Made by every rank, and judged by the first one's numbers: all have to draw the same consequences.
            scores |= self.ranks.share(self.energy.scores(self.ema.model, self.held_out, together.between))
            scores["selection"] = self.energy.selection(scores)
        return scores

    def _made(self) -> Tensor | None:
        return self.energy.picture(self.ema.model) if self.energy else None

    def _keep_if_best(self, scores: dict[str, float]) -> None:
        """Keeps the classifier if none before it was better, and likewise as a refiner."""
        progress = self.progress
        progress.without_better += 1
        if selection(scores) >= progress.best:
            progress.best, progress.best_scores, progress.without_better = selection(scores), scores, 0
            self._keep(scores, self.checkpoint)
        if self.refining and self.refining.distance(scores) <= progress.best_refined:
            progress.best_refined, progress.best_refined_scores = self.refining.distance(scores), scores
            self._keep(scores, self.refiner)

    def _keep(self, scores: dict[str, float], checkpoint: Path) -> None:
        model = self.ema.model
        generation = self.energy.generation(scores) if self.energy else None
        model.description = replace(model.description, scores={"validation": scores}, generation=generation)
        if self.ranks.is_first:
            save(model, checkpoint)
            if self.energy:
                self.energy.keep_seeds(checkpoint)

    def _strengthen_attack(self, row: dict[str, float]) -> None:
        """Doubles the attack's steps if the network has learnt to withstand no more than this attack."""
        steps = self.attack.steps
        if row["training_attack"] - row["pgd"] > self.config.guard.gap:
            self.progress.least_attack_steps = 2 * steps
            if self.ranks.is_first:
                print(
                    f"catastrophic overfitting at step {self.progress.step}: {row['training_attack']:.1%} right under "
                    f"the training attack, {row['pgd']:.1%} under PGD; going on with {2 * steps} steps",
                    file=sys.stderr,
                )

    def save(self) -> None:
        """The state to go on from. UserError, naming the step, where it is not finite or finds no room."""
        if self.pending:
            mean(self.pending, self.progress.step)
        self.progress.wall_s = time.monotonic() - self.started
        self.saved_at = time.monotonic()
        if not self.ranks.is_first:
            return
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

    def summary(self) -> dict[str, Any]:
        """Where the classifier is, steps, seconds, scores of the best evaluation, precision and warnings, for JSON."""
        progress = self.progress
        refiner = {"refiner": str(self.refiner), "refiner_validation": progress.best_refined_scores}
        return {
            "checkpoint": str(self.checkpoint),
            "steps": progress.step,
            "wall_s": round(progress.wall_s, 1),
            "validation": progress.best_scores,
            **(refiner if self.refining else {}),
            **self.precision.summary(),
            "assumptions": self.model.description.recipe.get("init_assumed", {}),
            "warnings": self.warnings,
        }
