"""The cells of an augmentation study, each a classifier, and the samples that they train on, as jobs."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.robust.accuracy import robust_accuracy
from eval.study.augmentation.config import NONE, AddedSpec, AugmentationConfig
from eval.study.inputs import sha256_of_data, sha256_of_files
from eval.study.keys import training_depends
from eval.study.plan import CHECKPOINT, Job, run_training
from eval.study.store import Place, key_of
from robust_models import load
from robust_models.checkpoints.flags import file_of, split_checkpoints
from robust_models.datasets import Dataset, load_dataset
from robust_models.errors import UserError, about_field
from robust_models.images import open_images
from robust_models.images.npz import write_npz
from robust_models.labels import fit_labels
from robust_models.runtime.config import as_plain, overlaid, read_recipe, resolve
from robust_models.runtime.files import located, sha256_of
from robust_models.runtime.seeds import ORDER, generator
from train.config import TrainConfig
from train.start import open_generated

FORMAT = 1  # raised whenever the same key would mean other results


@dataclass(frozen=True)
class Cell:
    """A classifier: how it is trained, on how many real images, and what is added to them."""

    training: str
    amount: int
    added: str
    seed: int

    def __str__(self) -> str:
        real = f"{self.amount} real images" if self.amount else "no real images"
        plus = "" if self.added == NONE else f" and {self.added}"
        return f"{self.training}: {real}{plus}, seed {self.seed}"


class Augmentation:
    """One process's view of the study; several processes see the same jobs, and their results, in config.out."""

    def __init__(self, config: AugmentationConfig, device: torch.device) -> None:
        """UserError for whatever does not fit: it names the field."""
        self.config, self.device = config, device
        self.real, self.test = open_real(config)
        self.added = {one.name: _located(one) for one in config.added}
        self.counts = {name: _checked(one, self.real) for name, one in self.added.items()}
        self.recipes = {one.name: self._recipe(one.changes, one.name) for one in config.trainings}
        self._hashes: dict[Path, str] = {}
        self._cell_jobs: dict[Cell, Job] = {}
        self._check_updates()

    @cached_property
    def cells(self) -> list[Cell]:
        """Every classifier once, those without added samples first, as some of them refine."""
        config = self.config
        never_alone = {NONE, *(name for name, spec in self.added.items() if spec.trained_by is not None)}
        grid = product((NONE, *self.added), self.recipes, config.amounts, config.seeds)
        return [Cell(how, n, added, seed) for added, how, n, seed in grid if n > 0 or added not in never_alone]

    def jobs(self) -> list[Job]:
        """What can be done now, done or not: a cell once its samples stand, refinement once its classifier does."""
        found: dict[str, Job] = {}
        for cell in self.cells:
            samples = self.samples_job(cell)
            job = self.cell_job(cell)
            for one in (samples, job):
                if one is not None:
                    found.setdefault(one.place.key, one)
        return [*found.values()]

    def results(self) -> dict[Cell, dict[str, Any]]:
        """What was found, of the cells that are done."""
        jobs = {cell: self.cell_job(cell) for cell in self.cells}
        found = {cell: None if job is None else job.place.read() for cell, job in jobs.items()}
        return {cell: result for cell, result in found.items() if result is not None}

    def samples_job(self, cell: Cell) -> Job | None:
        """The job that makes what is added in this cell; None where that is nothing, or cannot be refined yet."""
        if cell.added == NONE:
            return None
        spec = self.added[cell.added]
        depends: dict[str, Any] = {"format": FORMAT, "samples": self._sha256(spec.path)}
        depends["class_names"] = list(self.real.class_names)
        if spec.refine is None:
            return self._job("samples", f"samples {spec.name}", depends, partial(self._write_samples, spec))
        ckpt = str(spec.refine.get("ckpt"))
        if spec.trained_by is not None:
            refiner = self.cell_job(replace(cell, training=spec.trained_by, added=NONE))
            if refiner is None or not refiner.place.done.exists():
                return None
            ckpt = str(refiner.place.folder / CHECKPOINT)
        files = [self._sha256(file) for file in _refiners(spec, ckpt)]
        depends |= {"refine": {**spec.refine, "ckpt": files}, "device": self.device.type}
        by = "" if spec.trained_by is None else f" by {spec.trained_by} of {cell.amount}, seed {cell.seed}"
        return self._job("samples", f"samples {spec.name}{by}", depends, partial(self._refine_samples, spec, ckpt))

    def cell_job(self, cell: Cell) -> Job | None:
        """The job of one cell; None where its samples are still to be made."""
        if cell in self._cell_jobs:
            return self._cell_jobs[cell]
        samples = self.samples_job(cell)
        if cell.added != NONE and (samples is None or not samples.place.done.exists()):
            return None
        made = None if samples is None else samples.place.arrays
        config = self.train_config(cell, made, self.config.out)
        depends = {
            "format": FORMAT,
            **training_depends(config),
            "test": self._test_sha256,
            "robust": as_plain(self.config.robust),
            "device": self.device.type,
        }
        data = as_plain(config.data)
        depends["data"] = {name: data[name] for name in data if name not in ("path", "generated")}  # these by content
        self._cell_jobs[cell] = self._job("cells", str(cell), depends, partial(self._train, cell, made))
        return self._cell_jobs[cell]

    def train_config(self, cell: Cell, made: Path | None, out: Path) -> TrainConfig:
        """The recipe for one cell. made: the samples, where they are added."""
        config = self.recipes[cell.training]
        path = made if cell.amount == 0 else self.draw(cell.amount, cell.seed)
        assert path is not None
        mixed: dict[str, Any] = {}
        if made is not None and cell.amount > 0:
            mixed = {"generated": str(made), "generated_share": self.config.share}
        epochs = self.config.updates // self.batches(cell)
        data = {"path": str(path), "validation": 0, "image_size": self.real.image_size, "class_names": (), **mixed}
        changes = {"data": data, "epochs": epochs, "seed": cell.seed, "out": str(out), "device": str(self.device)}
        return resolve(TrainConfig, overlaid(as_plain(config), {**changes, "validate": {"every_epochs": epochs}}))

    def batches(self, cell: Cell) -> int:
        """Optimizer steps of an epoch."""
        return (cell.amount or self.counts[cell.added]) // self.recipes[cell.training].batch_size

    def draw(self, amount: int, seed: int) -> Path:
        """So many of the real images, as a file. Larger amounts of a seed hold the smaller ones."""
        key = key_of({"real": self._real_sha256, "amount": amount, "seed": seed})
        file = self.config.out / "images" / f"{key}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            index = torch.randperm(len(self.real), generator=generator("cpu", seed, ORDER, 0))[:amount]
            write_npz(file, self.real.x_u8[index], self.real.y[index].numpy(), self.real.class_names)
        return file

    def _train(self, cell: Cell, made: Path | None, place: Place) -> dict[str, Any]:
        """Trains, or goes on where a killed run stopped, then measures; keeps the classifier that may refine."""
        run = place.folder / "run"
        summary = run_training(self.train_config(cell, made, run))
        model, robust = load(run / CHECKPOINT), self.config.robust
        found = robust_accuracy(
            model, self.test, norm=robust.norm, eps=robust.eps, steps=robust.steps, device=str(self.device)
        )
        shutil.copyfile(run / CHECKPOINT, place.folder / CHECKPOINT)
        shutil.rmtree(run)
        y = torch.from_numpy(fit_labels(self.test.y.numpy(), self.test.class_names, model.class_names, source="test"))
        return {
            "cell": vars(cell),
            "n": found.n,
            "updates": summary["steps"],
            "clean": found.clean,
            "robust": found.robust,
            "per_class": {
                name: [float(mask[y == k].float().mean()) for mask in (found.correct, found.withstood)]
                for k, name in enumerate(model.class_names)
            },
        }

    def _write_samples(self, spec: AddedSpec, place: Place) -> dict[str, Any]:
        data = open_generated(spec.path, self.real, f"added.{spec.name}")
        return _stored(place, data)

    def _refine_samples(self, spec: AddedSpec, ckpt: str, place: Place) -> dict[str, Any]:
        from refine.pipeline import refine_set

        config = spec.refinement(ckpt, spec.path, place.folder / "refined.npz", str(self.device))
        summary = refine_set(config)
        assert summary is not None
        refined = open_images(config.out)
        labels = _targets(Path(summary["manifest"]), self.real.class_names, f"added.{spec.name}")
        data = Dataset(refined.read(0, len(refined)), labels, self.real.class_names, spec.name)
        shutil.rmtree(place.folder)
        return _stored(place, data) | {name: summary[name] for name in ("eps", "steps", "distance", "targets")}

    def _job(self, kind: str, label: str, depends: dict[str, Any], work: Any) -> Job:
        return Job(Place(self.config.out, kind, key_of({"kind": kind, **depends})), label, depends, work)

    def _recipe(self, changes: dict[str, Any], name: str) -> TrainConfig:
        try:
            values = overlaid(read_recipe(self.config.train), changes)
            values = overlaid({"device": str(self.device), **values}, {"data": {"validation": 0, "class_names": ()}})
            return resolve(TrainConfig, {**values, "out": str(self.config.out)})
        except UserError as error:
            raise UserError(f"trainings.{name}: {str(error).replace('--config', 'train', 1)}") from error

    def _check_updates(self) -> None:
        """UserError where a batch is larger than what it is drawn from, or where steps would not be equal."""
        if (most := max(self.config.amounts)) > len(self.real):
            raise UserError(f"amounts: {most} is more than the {len(self.real)} real images that there are to train on")
        counts = {f"amounts: {n}": n for n in self.config.amounts if n}
        if 0 in self.config.amounts:
            counts |= {f"added.{name}: {n} samples": n for name, n in self.counts.items()}
        for what, n in counts.items():
            for name, recipe in self.recipes.items():
                if n < recipe.batch_size:
                    raise UserError(
                        f"{what} are less than a batch of {recipe.batch_size} (trainings.{name}); give it a smaller "
                        "batch_size"
                    )
        epochs = [n // recipe.batch_size for n in counts.values() for recipe in self.recipes.values()]
        if self.config.updates % (least := math.lcm(*epochs)):
            raise UserError(
                f"updates: {self.config.updates} does not come out as whole epochs for all (of {_listed(epochs)} "
                f"batches); give a multiple of {least}"
            )

    def _sha256(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256_of(path) if path.is_file() else sha256_of_files(path)
        return self._hashes[path]

    @cached_property
    def _real_sha256(self) -> str:
        return sha256_of_data(self.real)

    @cached_property
    def _test_sha256(self) -> str:
        return sha256_of_data(self.test)


def open_real(config: AugmentationConfig) -> tuple[Dataset, Dataset]:
    """The images to draw from, and those that measure."""
    source = {name: getattr(config, name) for name in ("data", "test")}
    found: dict[str, Dataset] = {}
    for name, text in source.items():
        if text is None:
            continue
        try:
            found[name] = load_dataset(text, "train" if name == "data" else "test")
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    data = found["data"]
    if config.held_out >= len(data):
        raise UserError(f"held_out: {config.held_out} leaves nothing of the {len(data)} images to train on")
    kept = len(data) - config.held_out
    return data[:kept], found.get("test", data[kept:])


def _located(spec: AddedSpec) -> AddedSpec:
    with about_field(f"added.{spec.name}"):
        return replace(spec, path=located(spec.path))


def _checked(spec: AddedSpec, real: Dataset) -> int:
    """How many samples there are. UserError where they cannot be trained on."""
    try:
        images = open_images(spec.path)
        if images.labels is None and spec.refine is None:
            raise UserError(f"{spec.path}: has no labels; give refine, whose targets become their labels")
        if images.labels is not None:
            fit_labels(images.labels, images.class_names, real.class_names, source=str(spec.path))
        if spec.refine is not None and spec.trained_by is None:
            _refiners(spec)
    except UserError as error:
        raise UserError(f"added.{spec.name}: {error}") from error
    most = (spec.refine or {}).get("limit")
    return len(images) if most is None else min(len(images), int(most))


def _refiners(spec: AddedSpec, ckpt: str | None = None) -> list[Path]:
    """The files of the classifiers that refine; ckpt: what they are, where the recipe does not say it."""
    given = str((spec.refine or {}).get("ckpt")) if ckpt is None else ckpt
    return [file_of(one) for one in split_checkpoints(given)]


def _targets(manifest: Path, class_names: Sequence[str], source: str) -> Tensor:
    """The classes that a refinement went towards, int64 [N]: by name, where the real images have names."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if all(name.isdecimal() for name in class_names):
        names, labels = None, [row["target"] for row in rows]
    else:
        names = sorted({row["class"] for row in rows})
        labels = [names.index(row["class"]) for row in rows]
    return torch.from_numpy(fit_labels(np.array(labels), names, class_names, source=source))


def _stored(place: Place, data: Dataset) -> dict[str, Any]:
    write_npz(place.arrays, data.x_u8, data.y.numpy(), data.class_names)
    counts = Counter(data.class_names[int(k)] for k in data.y)
    return {"num_images": len(data), "by_class": dict(sorted(counts.items()))}


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted({*numbers})))
