"""A checkpoint as a person has to know it before using it, and the same checkpoint in this project's format."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_models.checkpoints import save
from robust_models.checkpoints.checks import check_inspected
from robust_models.checkpoints.flags import CheckpointFlags, file_of
from robust_models.checkpoints.published import known_by_hash
from robust_models.classifier import RobustClassifier
from robust_models.datasets import Dataset, open_dataset
from robust_models.errors import UserError
from robust_models.inspection_by_accuracy import choose_by_accuracy, correct_mask, summary
from robust_models.labels import fit_labels
from robust_models.runtime.config import STRICT, DeviceFlags
from robust_models.runtime.device import pick_device
from robust_models.runtime.files import sha256_of

_DATA = "labelled images that show whether the load is right: cifar10, cifar10:DIR, an .npz or a folder of classes"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InspectConfig(DeviceFlags, CheckpointFlags):
    """Check: labelled images that show whether the file is read right."""

    file: str = Field(description="a checkpoint: a file, a Hugging Face folder or a name")
    data: str | None = Field(default=None, description=_DATA)
    limit: Annotated[int, Field(ge=1)] = Field(default=1000, description="only the first so many images of the data")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ConvertConfig(InspectConfig):
    """Output: what is written where."""

    out: Path = Field(description="the .safetensors file to write")
    overwrite: bool = Field(default=False, description="replace what stands at OUT")


def run_inspect(config: InspectConfig) -> dict[str, Any]:
    """What `inspect` prints about config.file, ready for JSON."""
    return _inspected(config)[1]


def run_convert(config: ConvertConfig) -> dict[str, Any]:
    """Writes config.out with all that is known of the file in its metadata; gives what `inspect` says of the file."""
    _check_out(config)
    model, seen = _inspected(config)
    save(model, config.out)
    return {**seen, "out": str(config.out)}


def check_convert(config: ConvertConfig) -> None:
    """UserError, as `convert` would raise it, before any file is read."""
    check_inspected(config)
    _check_out(config)


def _check_out(config: ConvertConfig) -> None:
    if config.out.suffix != ".safetensors":
        raise UserError(f"out: {config.out} does not end in .safetensors, the format of this project's checkpoints")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"out: {config.out} exists; choose another name or pass --overwrite")


def _inspected(config: InspectConfig) -> tuple[RobustClassifier, dict[str, Any]]:
    path = file_of(config.file)
    model = config.load(config.file, quiet=True).to(pick_device(config.device))
    known = known_by_hash(path) if path.is_file() else None
    accuracy: dict[str, Any] = {}
    if config.data is not None:
        data = open_dataset(config.data, "test", limit=config.limit).in_memory()
        model, accuracy = _measured(model, data)
    description = model.description
    source = description.recipe.get("source", {})
    return model, {
        "file": str(path),
        "sha256": sha256_of(path),
        "layout": source.get("layout", "this project's safetensors"),
        "published_as": known.name if known else source.get("published"),
        "arch": description.arch,
        "arch_from": source.get("arch", "the file's description"),
        "also_fits": source.get("also_fits", []),
        "activation": description.activation if ":" not in description.arch else None,
        "activation_from": source.get("activation"),
        "parameters": source.get("parameters") or sum(p.numel() for p in model.network.parameters()),
        "classes": list(description.class_names),
        "image_size": description.image_size,
        "normalizer": asdict(description.normalizer),
        "normalizer_from": source.get("normalizer", "the file's description"),
        "threat_model": str(description.threat_model) if description.threat_model else None,
        "generation": str(description.generation) if description.generation else None,
        "scores": description.scores,
        "metadata": source.get("told", {}),
        "assumptions": description.assumptions,
        "ignored": source.get("ignored", []),
        **accuracy,
    }


def _measured(model: RobustClassifier, data: Dataset) -> tuple[RobustClassifier, dict[str, Any]]:
    if data.image_size != model.image_size:
        raise UserError(
            f"data: {data.source} has images of {data.image_size} px; the classifier takes {model.image_size} px"
        )
    names = fit_labels(data.y.numpy(), data.class_names, model.class_names, source=data.source)
    y = torch.from_numpy(names)
    model, comparisons = choose_by_accuracy(model, data.x_u8, y)
    right = correct_mask(model, data.x_u8, y)
    return model, {
        "data": data.source,
        "n": len(right),
        "clean_accuracy": right.float().mean().item(),
        "readings": summary(comparisons),
    }
