"""The flags that synthesis tasks share, and the ball of their steps."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from refine.config import WITHOUT_EFFECT
from refine.flags import ClassifierFlags, InputFlags, PictureFlags, TaskFlags
from refine.targets import check_targets
from robust_models.checkpoints.flags import file_of
from robust_models.classifier import Precision
from robust_models.errors import UserError
from robust_models.images.open import fingerprint
from robust_models.runtime.config import STRICT, AtLeastOne, Number, as_plain
from robust_models.runtime.files import located, sha256_of
from robust_models.threat import NORMS, NormName, Unconstrained, check_ball, check_step_size

SMALL = 64  # pixels: images up to this side get the values that the paper has for CIFAR-10, larger ones those for 224


@dataclass(frozen=True, config=STRICT)
class Ball:
    """A ball around each image, and the steps inside it; pixels in [0,1]."""

    eps: float
    step_size: float
    steps: int
    norm: NormName = "l2"


def by_size(small: Ball, large: Ball) -> Callable[[int], Ball]:
    """Defaults of a task: `small` for images up to SMALL pixels, else `large`."""
    return lambda side: small if side <= SMALL else large


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SynthesisConfig(PictureFlags, TaskFlags):
    """Method: the ball around each image and the steps inside it, as every task has them."""

    out: Path = Field(
        description="where the images go: an .npz, .npy, .pt, .tar or .parquet file, or else a folder of classes"
    )
    eps: Annotated[Number, Field(ge=0)] | None = Field(
        default=None, description="radius, pixels in [0,1] (null: the paper's for this task and image size)"
    )
    step_size: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="length of a step, pixels in [0,1] (null: the paper's)"
    )
    steps: AtLeastOne | None = Field(default=None, description="number of steps (null: the paper's)")
    norm: NormName = Field(default="l2", description=f"geometry of ball and steps: {', '.join(NORMS)}")
    seed: int = Field(default=0, ge=0, description="of everything drawn; image k depends on (seed, k) alone")
    overwrite: bool = Field(default=False, description="replace what stands at --out")

    @model_validator(mode="after")
    def _ball_is_one(self) -> "SynthesisConfig":
        check_ball(self.norm, 0 if self.eps is None else self.eps)
        if self.eps is not None:
            check_step_size(self.norm, self.eps, self.step_size)
        return self

    def ball(self, defaults: Ball) -> Ball:
        """The defaults, overridden. UserError where they are of another norm and cannot be converted."""
        if self.norm == Unconstrained.name and defaults.norm == "l2":  # no radius, and steps of the same length
            defaults = replace(defaults, eps=math.inf, norm=self.norm)
        if self.norm != defaults.norm and (self.eps is None or self.step_size is None):
            missing = "eps" if self.eps is None else "step_size"
            raise UserError(
                f"{missing}: the default is for norm={defaults.norm}; with norm={self.norm} give both "
                "--eps and --step-size"
            )
        return Ball(
            defaults.eps if self.eps is None else self.eps,
            defaults.step_size if self.step_size is None else self.step_size,
            defaults.steps if self.steps is None else self.steps,
            self.norm,
        )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InputConfig(InputFlags, SynthesisConfig):
    """Options of the tasks that change given images, each towards a class."""

    targets: str | None = Field(
        default=None,
        description="given (the set's labels), pseudo (the classifier's guess), class:NAME, or a .csv or .json file of "
        "labels; default: the --prompt, else given where there are labels, else pseudo",
    )

    @model_validator(mode="after")
    def _targets_are_some(self) -> "InputConfig":
        check_targets(self.targets, ("pseudo",))
        return self


def deciding_of_task(task: str, config: ClassifierFlags, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Every setting that decides a task's images, JSON-ready: its flags, and what the files that they name hold."""
    plain = {
        name: value for name, value in as_plain(config).items() if name not in WITHOUT_EFFECT - {"input", "targets"}
    }
    files = {
        f"{name} files": fingerprint(located(value))
        for name, value in plain.items()
        if isinstance(value, str) and located(value).exists()
    }
    ckpt = f"{config.ckpt} (sha256 {sha256_of(file_of(config.ckpt))[:16]})"
    return {"task": task, "ckpt": ckpt, **plain, **files, "device": device.type, "precision": precision}
