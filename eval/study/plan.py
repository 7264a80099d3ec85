"""The jobs of a study: what there is to do, which of it can be done now, and where each result goes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.quality.collect import Collected, collect
from eval.study.cell import Refinement, Scorer, draw, run_cell
from eval.study.classifier import run_classifier
from eval.study.config import ClassifierSpec, StudyConfig
from eval.study.grid import Share, grid, in_words
from eval.study.inputs import Checkpoint, Inputs, Judge
from eval.study.keys import (
    Depends,
    cell_depends,
    classifier_depends,
    drawn,
    reference_depends,
    training_depends,
)
from eval.study.results import Axes
from eval.study.store import Place, key_of
from robust_models.classifier import Precision
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor
from robust_models.images import ImageSet
from robust_models.metrics import FrechetStatistics, Moments, read_statistics, write_statistics
from robust_models.runtime.config import overlaid, read_recipe, resolve
from robust_models.runtime.device import decide_precision
from robust_models.runtime.files import whole_file
from train.config import TrainConfig

WHOLE = Share()


@dataclass(frozen=True)
class Job:
    """One piece of work of a study, and where its result goes."""

    place: Place
    label: str  # for people
    depends: Depends
    work: Callable[[Place], dict[str, Any]]  # writes place.arrays, gives the rest of the result


class Study:
    """One process's view of a study; several processes see the same jobs, and their results, in config.out."""

    def __init__(self, config: StudyConfig, inputs: Inputs, device: torch.device) -> None:
        """UserError for train recipes that do not fit."""
        self.config, self.inputs, self.device = config, inputs, device
        self.precision: Precision = decide_precision(config.precision, device, "attack").precision
        labelled = [name for name, images in inputs.images.items() if images.set.labels is not None]
        self.cells = grid(config, labelled)
        self.trainings = {spec.name: self._training(spec) for spec in config.classifiers if spec.train is not None}
        self._checkpoints = dict(inputs.checkpoints)
        self._drawn: dict[Path, ImageSet] = {}

    def jobs(self, share: Share = WHOLE) -> list[Job]:
        """What the share needs and can be done now, done or not; training and references come first.

        A cell can be done once its classifier is trained and the references stand.
        """
        classifiers, cells = self.part(share)
        names = {*classifiers, *(axes.classifier for axes in cells)}
        first = [*self.references, *(job for name, job in self.trainings.items() if name in names)]
        ready = [job for name in classifiers if (job := self.classifier_job(name)) is not None]
        if all(job.place.done.exists() for job in self.references):
            ready += [job for axes in cells if (job := self.cell_job(axes)) is not None]
        return [*first, *ready]

    def checkpoint(self, name: str) -> Checkpoint | None:
        """The classifier; None where it is still to be trained."""
        training = self.trainings.get(name)
        if name not in self._checkpoints and training is not None and training.place.done.exists():
            spec = next(spec for spec in self.config.classifiers if spec.name == name)
            self._checkpoints[name] = Checkpoint.open(spec, str(training.place.folder / CHECKPOINT))
        return self._checkpoints.get(name)

    def classifier_job(self, name: str) -> Job | None:
        """None where the classifier is still to be trained; so with cells."""
        checkpoint = self.checkpoint(name)
        if checkpoint is None:
            return None
        depends = classifier_depends(self.config, self.inputs, checkpoint, self.device)
        work = partial(run_classifier, self.config, self.inputs, checkpoint, self.device)
        return self._job("classifiers", f"classifier {name}", depends, work)

    def cell_job(self, axes: Axes) -> Job | None:
        """The job of one cell; None where its classifier is still to be trained."""
        checkpoint = None if axes.classifier is None else self.checkpoint(axes.classifier)
        if axes.classifier is not None and checkpoint is None:
            return None
        depends = cell_depends(self.config, self.inputs, axes, checkpoint, self.device)
        return self._job("cells", in_words(axes), depends, partial(self._run_cell, axes, checkpoint))

    @cached_property
    def references(self) -> list[Job]:
        """Of each judge's real images: their statistics, and their features one by one."""
        found = [self._reference_jobs(judge) for judge in self.inputs.judges]
        return [job for pair in found for job in reversed(pair) if job is not None]  # statistics follow from features

    def reference(self, judge: Judge) -> Path:
        """A judge's stored statistics, once they stand."""
        statistics, _ = self._reference_jobs(judge)
        return judge.reference.path if statistics is None else statistics.place.arrays

    def real_rows(self, judge: Judge) -> Path | None:
        """A judge's features of real images (an .npz), once they stand; None where there are none."""
        _, rows = self._reference_jobs(judge)
        return None if rows is None else rows.place.arrays

    def _reference_jobs(self, judge: Judge) -> tuple[Job | None, Job | None]:
        """(statistics, features one by one) of the real images; None for what is stored already, or cannot be had."""
        reference, real = judge.reference, judge.real
        statistics = None
        if reference.images is not None:
            statistics = self._reference_job(judge, reference.images, reference.sha256, "frechet")
        rows = None if real is None else self._reference_job(judge, real.set, real.sha256, "rows")
        return statistics, rows

    @property
    def real(self) -> Path | None:
        """The real images; None where there are none."""
        real = self.inputs.judges[0].real
        return None if real is None else real.set.path

    def images(self, axes: Axes) -> ImageSet:
        """What a cell refines."""
        images = self.inputs.images[axes.images]
        file = self.config.out / "images" / f"{key_of(drawn(images, axes.seed))}.npz"
        if file not in self._drawn:
            self._drawn[file] = draw(images, axes.seed, file)
        return self._drawn[file]

    @cached_property
    def _scorers(self) -> tuple[Scorer, ...]:
        """One for each judge."""
        return tuple(self._scorer(judge) for judge in self.inputs.judges)

    def _scorer(self, judge: Judge) -> Scorer:
        reference: Moments | None = judge.reference.stored or read_statistics(self.reference(judge))
        assert reference is not None
        rows, path = None, self.real_rows(judge)
        if path is not None:
            with np.load(path) as arrays:
                rows = torch.from_numpy(arrays["features"])
        return Scorer(judge, reference, rows, self.device, self.config.batch_size)

    def _run_cell(self, axes: Axes, checkpoint: Checkpoint | None, place: Place) -> dict[str, Any]:
        judges = tuple(judge.features.name for judge in self.inputs.judges)
        refinement = Refinement(axes, checkpoint, self.precision, self.real, judges)
        return run_cell(self.images(axes), refinement, self._scorers, place, keep=self.config.keep_images)

    def _training(self, spec: ClassifierSpec) -> Job:
        anywhere = train_config(spec, self.config.out, str(self.device))
        depends = training_depends(anywhere)
        job = self._job("trained", f"training of {spec.name}", depends, lambda place: {})
        config = replace(anywhere, out=job.place.folder)
        return replace(job, work=lambda place: run_training(config))

    def _reference_job(self, judge: Judge, images: ImageSet, sha256: str, part: str) -> Job:
        depends = reference_depends(sha256, judge.features, part, self.device)
        work = partial(self._run_reference, judge.features, images, part)
        return self._job("references", f"{part} of {images.path.name} in {judge.features.name}", depends, work)

    def _run_reference(self, features: FeatureExtractor, images: ImageSet, part: str, place: Place) -> dict[str, Any]:
        rows = self._known_rows(features, images) if part == "frechet" else None
        parts = ("frechet",) if part == "frechet" else ("rows",)
        found = Collected(FrechetStatistics.of(rows)) if rows is not None else None
        found = found or collect(images, features, parts, batch_size=self.config.batch_size)
        assert found is not None
        if found.frechet is not None:
            write_statistics(
                place.arrays,
                found.frechet,
                features=features.name,
                protocol=features.protocol,
                sha256=features.source.sha256,
            )
        else:
            assert found.rows is not None
            with whole_file(place.arrays) as partial_file, partial_file.open("wb") as file:
                np.savez(file, features=found.rows.numpy())
        return {"num_images": len(images)}

    def _known_rows(self, features: FeatureExtractor, images: ImageSet) -> np.ndarray | None:
        """The features of the images one by one, where a job has left them; None where not."""
        judge = next(judge for judge in self.inputs.judges if judge.features is features)
        path = self.real_rows(judge)
        if path is None or judge.real is None or judge.real.set.path != images.path or not path.exists():
            return None
        with np.load(path) as arrays:
            return arrays["features"]

    def _job(self, kind: str, label: str, depends: Depends, work: Callable[[Place], dict[str, Any]]) -> Job:
        return Job(Place(self.config.out, kind, key_of({"kind": kind, **depends})), label, depends, work)

    def part(self, share: Share) -> tuple[list[str], list[Axes]]:
        """The share's part of the classifiers to measure and of the cells."""
        everything = share.of([*(spec.name for spec in self.config.classifiers), *self.cells])
        return [one for one in everything if isinstance(one, str)], [one for one in everything if isinstance(one, Axes)]


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
