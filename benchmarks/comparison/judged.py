"""What the comparisons share: judges that took no part, sets of images that pair, and a folder that is of one run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from eval.study.report.compare import Comparison
from robust_models.checkpoints.flags import load_classifier
from robust_models.datasets import load_dataset
from robust_models.errors import UserError
from robust_models.features import FeatureExtractor, open_features
from robust_models.features.involved import check_uninvolved
from robust_models.images import open_images
from robust_models.metrics.half_splits import LEAST_IMAGES
from robust_models.metrics.kernel_resampled import reference_for
from robust_models.runtime.config import STRICT, DeviceFlags, several
from robust_models.runtime.device import pick_device
from robust_models.runtime.files import write_json

BATCH = 100
Spaces = Annotated[tuple[str, ...], BeforeValidator(several), Field(min_length=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class JudgeFlags(DeviceFlags):
    """Judges: in which features sets are compared, and with which real images."""

    test: str = Field(description="real images that nothing was trained or calibrated on")
    spaces: Spaces = Field(default=("efficientnet-lite0-128",), description="feature spaces, with commas")
    weights: str | None = Field(default=None, description="of the Inception network (null: torch's hub cache)")


class Judges:
    """The feature spaces of the flags, and the real images in them."""

    def __init__(self, flags: JudgeFlags, refiners: Sequence[str], num_images: int) -> None:
        """UserError for what does not fit, and for a judge that refines: all before any work."""
        if num_images < LEAST_IMAGES:
            raise UserError(f"num_images: {num_images} are too few for an interval; {LEAST_IMAGES} is the least")
        self.names, self.num_images = flags.spaces, num_images
        self.spaces = [_opened(name, flags) for name in flags.spaces]
        for refiner in refiners:
            model, source = load_classifier(refiner)
            for space in self.spaces:
                check_uninvolved(space, refiner, source.sha256, model.description)
        self.real = load_dataset(flags.test, "test").x_u8

    def compared(self, sets: Mapping[str, Path]) -> tuple[list[Comparison], list[dict[str, Tensor]], list[Tensor]]:
        """By space: the comparison of all sets, their features and those of the real images."""
        references = [features(space, self.real) for space in self.spaces]
        seen = [{name: features(space, pixels(path)) for name, path in sets.items()} for space in self.spaces]
        found = [
            Comparison(((name, rows.numpy()) for name, rows in one.items()), reference_for(reference, self.num_images))
            for one, reference in zip(seen, references, strict=True)
        ]
        return found, seen, references


def _opened(name: str, flags: JudgeFlags) -> FeatureExtractor:
    try:
        return open_features(
            name, weights=flags.weights if name.startswith("inception") else None, device=pick_device(flags.device)
        )
    except UserError as error:
        raise UserError(f"spaces: {error}") from error


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Writes settings.json. UserError where the folder holds sets of other settings."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    if path.exists():
        old = json.loads(path.read_text())
        for name, value in settings.items():
            if old.get(name) != value:
                raise UserError(
                    f"out: {folder} holds sets of another {name} ({old.get(name)} there, {value} now); choose another "
                    "--out"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def pixels(path: Path) -> Tensor:
    """[N,3,H,W] uint8."""
    images = open_images(path)
    return images.read(0, len(images))


def features(space: FeatureExtractor, x_u8: Tensor) -> Tensor:
    """[N,D] on the CPU."""
    return torch.cat([space(part).cpu() for part in x_u8.split(BATCH)])


def words(one: Comparison, name: str, other: str) -> str:
    """ "-0.012 (-0.020 to -0.004)"."""
    found = one.difference(name, other)
    low, high = found.interval
    return f"{found.value:+.3g} ({low:+.3g} to {high:+.3g})"
