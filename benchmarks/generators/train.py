"""Trains a generator of images of 32x32 pixels.

    python -m benchmarks.generators.train --model cgan-pd --data cifar10 --out runs/cgan-pd --minutes 180

One loop for all models; each has a short file beside this one with its recipes. The same command goes on with a run
that was stopped or killed, on as many threads to the same bytes as without: everything drawn follows from the seed and
the step.
"""

import copy
import math
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.generators.batches import Batches
from benchmarks.generators.config import GeneratorConfig, recipe_of
from benchmarks.generators.diffusion import Denoising
from benchmarks.generators.folder import PIPELINE, State, claim, read_cost, save_network, save_state
from benchmarks.generators.model import Setting, Trainable
from benchmarks.generators.models import MODELS
from robust_models.errors import UserError
from robust_models.grids import save_rows
from robust_models.images import to_u8
from robust_models.runtime.command import Command, Summary, run
from robust_models.runtime.device import decide_precision, pick_device
from robust_models.runtime.files import exclusive, reporting_no_room, whole_folder, write_json
from robust_models.runtime.seeds import EVALUATION, STEP, generator
from robust_models.runtime.signals import Interrupted, StopSignals
from train.copies import EMA
from train.report import MetricsLog

FIRST_PICTURE = 250  # steps; then at twice as many, and so on
PICTURED = 10  # images
BATCHES_OF_STATISTICS = 200  # for the batch norms of the generator whose weights are averaged; 20 for a picture


def train_generator(config: GeneratorConfig) -> Summary:
    """Runs the recipe in config.out and gives the cost: steps, seconds, images, passes through each network.

    SIGTERM and Ctrl-C save the state. UserError for bad input, before config.out is touched.
    """
    with StopSignals() as stop, exclusive(config.out):
        with stop.anywhere():
            training = Run(config)
        with MetricsLog(config.out, from_step=training.state.step) as log:
            try:
                while not training.finished:
                    stop.check()
                    training.step(log)
            except Interrupted as interrupted:
                training.save()
                print(f"{interrupted.cause}: saved at step {training.state.step}", file=sys.stderr)
                raise
        return training.finish()


class Run:
    """A training as it stands."""

    def __init__(self, config: GeneratorConfig) -> None:
        recipe, device = recipe_of(config), pick_device(config.device)
        precision = decide_precision(config.precision, device, "training").precision
        self.config, self.recipe, self.device = config, recipe, device
        self.batches = Batches(config.data, recipe.batch_size, config.seed, device, flip=recipe.flip)
        self.class_names = self.batches.data.class_names
        torch.manual_seed(config.seed)
        setting = Setting(recipe, len(self.class_names), device, precision)
        self.trained: Trainable = MODELS[config.model].build(setting)
        self.ema = EMA(self.trained.networks["generator"], recipe.ema)
        about = {
            "model": config.model,
            "data": config.data,
            "seed": config.seed,
            "precision": precision,
            "log_every": config.log_every,
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "recipe": asdict(recipe),
        }
        self.state = claim(config.out, about) or State()
        if self.state.step:
            self.trained.networks.load_state_dict(self.state.networks)
            self.ema.model.load_state_dict(self.state.ema)
            for name, optimizer in self.trained.optimizers.items():
                optimizer.load_state_dict(self.state.optimizers[name])
            self.state.totals = {name: value.to(device) for name, value in self.state.totals.items()}
        for name, network in self.trained.networks.items():
            network.register_forward_hook(lambda network, x, _, name=name: self._count(name, network, len(x[0])))
        self.saved_at = self.row_at = time.monotonic()
        self.row_step = self.state.step
        self.started = self.saved_at - self.state.wall_s

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the minutes are over."""
        minutes = self.config.minutes or math.inf
        return self.state.step >= self.recipe.steps or time.monotonic() - self.started >= 60 * minutes

    def step(self, log: MetricsLog) -> None:
        """One step, and what is due after it: a row of metrics, a picture, a saved state."""
        state, count = self.state, self.trained.batches_per_step
        torch.manual_seed(generator("cpu", self.config.seed, STEP, state.step).initial_seed())
        for optimizer in self.trained.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.recipe.lr_factor(state.step)
        losses = self.trained.step(map(self.batches, range(state.step * count, (state.step + 1) * count)))
        self.ema.update(self.trained.networks["generator"], state.step)
        for name, value in losses.items():
            state.totals[name] = state.totals.get(name, 0) + value.detach()
        state.step += 1
        if state.step % self.config.log_every == 0:
            self._write_row(log)
        if _is_pictured(state.step):
            state.pictured[state.step] = self._samples()
            self._save_picture()
        if time.monotonic() - self.saved_at >= 60 * self.config.save_minutes:
            self.save()

    def save(self) -> None:
        """The state to go on from. UserError, naming the step, where a loss is not finite."""
        self._means(1)
        state = self.state
        state.wall_s = time.monotonic() - self.started
        state.networks, state.ema = self.trained.networks.state_dict(), self.ema.model.state_dict()
        state.optimizers = {name: optimizer.state_dict() for name, optimizer in self.trained.optimizers.items()}
        save_state(self.config.out, state)
        self.saved_at = time.monotonic()

    def finish(self) -> Summary:
        """Saves state, picture and networks, and the cost once all of these are there; gives the cost."""
        out, state = self.config.out, self.state
        if (cost := read_cost(out)) is not None and cost["steps"] == state.step:
            print(f"{out}: already finished, at step {state.step}", file=sys.stderr)
            return {**cost, "out": str(out)}
        self.save()
        generator = self._ready(BATCHES_OF_STATISTICS)
        self._save_picture(end=self._samples())
        if isinstance(self.trained, Denoising):
            _save_pipeline(self.trained.pipeline(generator.half()), out / PIPELINE)
        else:
            save_network(out / "generator.safetensors", generator)
            for name in self.trained.networks.keys() - {"generator", "encoder"}:
                save_network(out / f"{name}.safetensors", self.trained.networks[name])
        cost = {
            "model": self.config.model,
            "steps": state.step,
            "wall_s": round(state.wall_s, 1),
            "images": state.step * self.trained.batches_per_step * self.recipe.batch_size,
            "passes": state.passes,
            "threads": torch.get_num_threads(),
            "device": str(self.device),
        }
        write_json(out / "cost.json", cost)
        return {**cost, "out": str(out)}

    def _count(self, name: str, network: nn.Module, images: int) -> None:
        if network.training:
            self.state.passes[name] = self.state.passes.get(name, 0) + images

    def _means(self, count: int) -> dict[str, float]:
        means = {name: float(total) / count for name, total in self.state.totals.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {self.state.step}: the loss {name} is {value}; the last state that was saved is kept. Try "
                    "--precision fp32, or another --seed"
                )
        return means

    def _write_row(self, log: MetricsLog) -> None:
        state, now = self.state, time.monotonic()
        steps = state.step - self.row_step
        means = self._means(self.config.log_every)
        per_step = self.trained.batches_per_step * self.recipe.batch_size
        rate = steps * per_step / (now - self.row_at)
        with reporting_no_room(self.config.out):
            log.write(state.step, "train", {**means, "images_per_s": rate})
        losses = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        print(
            f"step {state.step}/{self.recipe.steps}  {losses}  {rate:.1f} img/s  {now - self.started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        state.totals = {}
        self.row_step, self.row_at = state.step, now

    def _ready(self, batches: int) -> nn.Module:
        """A copy of the averaged generator, its batch norms' statistics estimated anew for these weights."""
        network = copy.deepcopy(self.ema.model)
        self.trained.networks.eval()
        with torch.no_grad():
            torch.manual_seed(generator("cpu", self.config.seed, EVALUATION, 0).initial_seed())
            update_bn(range(batches), _AsInTraining(self.trained, network, self.batches))
        self.trained.networks.train()
        return network.eval()

    def _samples(self) -> Tensor:
        """x_u8 of a few images, of the same noise in every picture."""
        sampler = self.trained.sampler(self._ready(BATCHES_OF_STATISTICS // 10), self.device)
        y = None if sampler.num_classes is None else torch.arange(PICTURED) % sampler.num_classes
        return to_u8(sampler([torch.Generator().manual_seed(k) for k in range(PICTURED)], y)).cpu()

    def _save_picture(self, end: Tensor | None = None) -> None:
        rows = dict(self.state.pictured) if end is None else {**self.state.pictured, self.state.step: end}
        captions = [self.class_names[k % len(self.class_names)] for k in range(PICTURED)]
        shown = [(f"step {step}", x) for step, x in sorted(rows.items())]
        save_rows(self.config.out / "samples.png", shown, captions, columns=PICTURED)


class _AsInTraining(nn.Module):
    """number k -> batch k through a generator, for update_bn."""

    def __init__(self, trained: Trainable, network: nn.Module, batches: Batches) -> None:
        super().__init__()
        self.network, self.trained, self.batches = network, trained, batches

    def forward(self, k: int) -> None:
        self.trained.as_in_training(self.network, self.batches(k))


def _is_pictured(step: int) -> bool:
    count, rest = divmod(step, FIRST_PICTURE)
    return rest == 0 and count.bit_count() == 1


def _save_pipeline(pipeline: Any, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)  # of the same run, when it had fewer steps
    with whole_folder(place) as partial:
        pipeline.save_pretrained(partial)


def _in_words(summary: Summary) -> str:
    return (
        f"{summary['out']}: {summary['model']} after {summary['steps']} steps, {summary['images']} images, "
        f"{summary['wall_s']:.0f} s"
    )


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    command = Command("python -m benchmarks.generators.train", about, GeneratorConfig, train_generator, _in_words)
    return run(command)


if __name__ == "__main__":
    sys.exit(main())
