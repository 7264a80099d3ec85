"""From the files of a study's folder to its results."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eval.study import commands
from eval.study.config import StudyConfig
from eval.study.inputs import Checkpoint, open_inputs
from eval.study.plan import Job, Study
from eval.study.results import Accuracy, Axes, CellResult, ClassifierResult, Provenance, Results
from robust_models.runtime.config import as_plain
from robust_models.runtime.device import pick_device


def load_results(out: Path, config: StudyConfig, command: str = "") -> Results:
    """What stands in a study's folder. UserError where config does not fit (see open_inputs)."""
    device = pick_device(config.device)
    return collect_results(Study(replace(config, out=out), open_inputs(config, device), device), command)


def collect_results(study: Study, command: str) -> Results:
    """What is done so far, and what failed."""
    cells = [_cell(study, axes) for axes in study.cells]
    config, features = study.config, study.inputs.judge.features
    return Results(
        title=config.title,
        question=config.question,
        vary=config.vary,
        judge=config.judge,
        reference=study.reference,
        reference_words=f"{_reference(study)}, Frechet distance in the {features.dim} features of {config.judge}",
        classifiers=tuple(_classifier(study, spec.name) for spec in config.classifiers),
        cells=tuple(cell for cell in cells if cell is not None),
        command=command,
        missing=sum(cell is None for cell in cells),
    )


def _reference(study: Study) -> str:
    reference = study.inputs.reference
    n = len(reference.images) if reference.images is not None else reference.stored and reference.stored.n
    return f"{n:,} images of {reference.path.name}" if n else f"{reference.path.name} (of an unknown number of images)"


def _cell(study: Study, axes: Axes) -> CellResult | None:
    """None where nobody has run it."""
    blocked = _blocked(study, axes.classifier)
    job = None if blocked else study.cell_job(axes)
    if job is None:
        return CellResult(axes, error=blocked) if blocked else None
    found, error = job.place.read(), job.place.error()
    if found is None:
        return CellResult(axes, error=error) if error else None
    inputs, checkpoint = study.inputs, study.checkpoint(axes.classifier) if axes.classifier else None
    images = study.images(axes)
    command = commands.refinement(
        study.config, axes, checkpoint, study.precision, images.path, inputs.judge.features, study.reference
    )
    read = {
        "checkpoint": checkpoint and checkpoint.sha256,
        "images": inputs.images[axes.images].sha256,
        "judge": inputs.judge.features.source.sha256,
        "reference": inputs.reference.sha256,
        "reference_images": inputs.reference_images and inputs.reference_images.sha256,
    }
    settings = {**asdict(axes), "precision": study.precision, "judge": study.config.judge, "path": str(images.path)}
    provenance = _provenance(job, found, command, settings, read)
    return CellResult(axes, found["num_images"], found["scores"], job.place.arrays, provenance)


def _classifier(study: Study, name: str) -> ClassifierResult:
    """With an error where it could not be trained or measured, or not yet."""
    job = None if _blocked(study, name) else study.classifier_job(name)
    checkpoint = study.checkpoint(name)
    if job is None or checkpoint is None:
        blocked = _blocked(study, name)
        return ClassifierResult(name, error=blocked or "not trained yet", pending=blocked is None)
    known = _described(name, checkpoint)
    found = job.place.read()
    if found is None:
        error = job.place.error()
        return replace(known, error=error or "not measured yet", pending=error is None)
    command = commands.accuracy(study.config, checkpoint, study.data)
    read = {"checkpoint": checkpoint.sha256, "data": study.inputs.data_sha256}
    settings = {"ckpt": checkpoint.ckpt, "data": study.config.data, **as_plain(study.config.robust)}
    return replace(
        known,
        num_images=found["num_images"],
        accuracies=tuple(Accuracy(**{**one, "interval": tuple(one["interval"])}) for one in found["accuracies"]),
        panel=job.place.arrays,
        provenance=_provenance(job, found, command, settings, read),
    )


def _described(name: str, checkpoint: Checkpoint) -> ClassifierResult:
    description = checkpoint.description
    return ClassifierResult(
        name,
        arch=description.arch,
        num_parameters=checkpoint.num_parameters,
        image_size=description.image_size,
        class_names=description.class_names,
        threat_model=str(description.threat_model or "none"),
    )


def _blocked(study: Study, classifier: str | None) -> str | None:
    """Why what needs the classifier (and, for cells, the references) cannot be had: a job before it has failed."""
    jobs = [*study.references, *([study.trainings[classifier]] if classifier in study.trainings else [])]
    for job in jobs:
        if error := job.place.error():
            return f"{job.label} failed: {error}"
    return None


def _provenance(
    job: Job, found: dict[str, Any], command: str, settings: dict[str, Any], read: dict[str, str | None]
) -> Provenance:
    environment = dict(found["environment"])
    return Provenance(
        key=job.place.key,
        command=command,
        config=settings,
        inputs={name: sha256 for name, sha256 in read.items() if sha256 is not None},
        machine=environment.pop("machine"),
        versions={**environment, **found["depends"]["versions"]},
        wall_s=found["wall_s"],
    )
