"""From the files of a study's folder to its results."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from eval.study import commands
from eval.study.config import StudyConfig
from eval.study.inputs import Checkpoint, Judge, Reference, open_inputs
from eval.study.plan import Job, Study
from eval.study.results import Accuracy, Axes, CellResult, ClassifierResult, JudgedBy, Provenance, Results
from refine.selection import spread
from robust_models.images import to_float
from robust_models.runtime.config import as_plain
from robust_models.runtime.device import pick_device

MOST_NEIGHBOURS = 200  # real images whose nearest neighbours are looked for
ORDERS = {"l1": 1.0, "l2": 2.0, "linf": torch.inf}


def load_results(out: Path, config: StudyConfig, command: str = "") -> Results:
    """What stands in a study's folder. UserError where config does not fit (see open_inputs)."""
    device = pick_device(config.device)
    return collect_results(Study(replace(config, out=out), open_inputs(config, device), device), command)


def collect_results(study: Study, command: str) -> Results:
    """What is done so far, and what failed."""
    cells = [_cell(study, axes) for axes in study.cells]
    config = study.config
    lead, *others = (_judged_by(study, judge) for judge in study.inputs.judges)
    return Results(
        title=config.title,
        question=config.question,
        vary=config.vary,
        judge=lead.judge,
        reference=lead.reference,
        reference_words=lead.reference_words,
        real=lead.real,
        others=tuple(others),
        kin=_kin(study),
        neighbours=_neighbours(study),
        classifiers=tuple(_classifier(study, spec.name) for spec in config.classifiers),
        cells=tuple(cell for cell in cells if cell is not None),
        command=command,
        missing=sum(cell is None for cell in cells),
    )


def _kin(study: Study) -> tuple[str, ...]:
    """The classifiers that were made for the classes of the first judge, where that is a classifier."""
    classes = study.inputs.judges[0].class_names
    found = [(spec.name, study.checkpoint(spec.name)) for spec in study.config.classifiers]
    return tuple(name for name, one in found if one is not None and classes == one.description.class_names)


def _neighbours(study: Study) -> dict[str, float]:
    """By norm, the median distance of a real image to the nearest other one; {} without real images."""
    real = study.inputs.judges[0].real
    if real is None:
        return {}
    index = spread(len(real.set), MOST_NEIGHBOURS).tolist()
    x = to_float(torch.cat([real.set.read(i, i + 1) for i in index])).flatten(1)
    found = {}
    for norm in study.config.norm:
        if norm in ORDERS:
            distances = torch.cdist(x, x, p=ORDERS[norm]).fill_diagonal_(torch.inf)
            found[norm] = float(distances.min(dim=1).values.median())
    return found


def _judged_by(study: Study, judge: Judge) -> JudgedBy:
    name = judge.features.name
    words = f"{_reference(judge.reference)}, Frechet distance in the {judge.features.dim} features of {name}"
    if _by_kernel(study, judge):
        assert judge.real is not None
        n = len(judge.real.set)
        words = f"{n:,} images of {judge.real.set.path.name}, KID in the {judge.features.dim} features of {name}"
    return JudgedBy(name, study.reference(judge), words, study.real_rows(judge))


def _by_kernel(study: Study, judge: Judge) -> bool:
    """Whether some image set or the real images are fewer than the features."""
    sizes = [images.limit or len(images.set) for images in study.inputs.images.values()]
    return judge.real is not None and min(*sizes, len(judge.real.set)) < judge.features.dim


def _reference(reference: Reference) -> str:
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
    lead, *others = inputs.judges
    by_kernel = "kid" in found["scores"] and lead.real is not None
    reference = lead.real.set.path if by_kernel and lead.real is not None else study.reference(lead)
    command = commands.refinement(
        study.config,
        axes,
        checkpoint,
        study.precision,
        images.path,
        lead.features,
        reference,
        real=study.real,
        judges=[judge.features.name for judge in inputs.judges],
        by_kernel=by_kernel,
    )
    read = {
        "checkpoint": checkpoint and checkpoint.sha256,
        "images": inputs.images[axes.images].sha256,
        "judge": lead.features.source.sha256,
        **{f"judge {i}": judge.features.source.sha256 for i, judge in enumerate(others, 2)},
        "reference": lead.reference.sha256,
        "reference_images": lead.real and lead.real.sha256,
    }
    judges = ",".join(judge.features.name for judge in inputs.judges)
    settings = {**asdict(axes), "precision": study.precision, "judge": judges, "path": str(images.path)}
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
    command = commands.accuracy(study.config, checkpoint, study.config.data)
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
