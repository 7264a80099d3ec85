"""What each measurement takes: every field, with its range."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.runtime.config import STRICT, Number
from robust_models.runtime.device import PrecisionChoice
from robust_models.threat import NORMS, check_ball

NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

_DEVICE = "auto, cpu, cuda, cuda:1, ..."
_FEATURES = "classifier:NAME_OR_FILE, inception (2048-d, the FID's) or inception-768"
_WEIGHTS = "local file of the Inception network (default: the copy in torch's hub cache)"


@dataclass(frozen=True, config=STRICT)
class RobustConfig:
    ckpt: str = Field(description="a classifier: an embedded name or a checkpoint file, anyone's")
    data: str = Field(description='labelled images: "cifar10", "cifar10:DIR", an .npz or a folder of class subfolders')
    eps: NonNegative = Field(description="radius of the ball, pixels in [0,1]; 8/255 is a number here")
    norm: str = Field("l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    arch: str | None = Field(None, description="a foreign checkpoint's network (null: from its tensors' shapes)")
    normalize: str | None = Field(None, description="its normaliser: cifar10, imagenet, none (null: the file's)")
    attack: Literal["pgd"] = Field("pgd")
    steps: AtLeastOne = Field(20, description="gradient steps of each run")
    step_size: Positive | None = Field(None, description="length of a step (null: 2.5 * eps / steps)")
    restarts: AtLeastOne = Field(1, description="runs for each image; it counts as robust if it withstands all")
    random_start: bool = Field(True, description="start anywhere in the ball instead of at the image")
    limit: AtLeastOne | None = Field(None, description="only the first so many images (null: all)")
    batch_size: AtLeastOne = Field(250, description="images at a time; the result does not depend on it")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the random starts")
    device: str = Field("auto", description=_DEVICE)
    precision: PrecisionChoice = Field("fp32", description="fp32 for figures to quote; bf16 for a quick look")

    @model_validator(mode="after")
    def _consistent(self) -> "RobustConfig":
        check_ball(self.norm, self.eps)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts: {self.restarts} runs without a random start would all be the same")
        return self

    @property
    def resolved_step_size(self) -> float:
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size


@dataclass(frozen=True, config=STRICT)
class QualityConfig:
    images: Path = Field(description="image set to judge: an .npz or a folder; or an .npz of stored statistics")
    reference: Path = Field(description="image set to compare with, likewise")
    features: str = Field(description=_FEATURES)
    weights: Path | None = Field(None, description=_WEIGHTS)
    batch_size: AtLeastOne = Field(50, description="images at a time; the result does not depend on it")
    device: str = Field("auto", description=_DEVICE)


@dataclass(frozen=True, config=STRICT)
class StatisticsConfig:
    images: Path = Field(description="image set: an .npz or a folder")
    features: str = Field(description=_FEATURES)
    out: Path = Field(description=".npz to write: mu, sigma, n and what they are statistics of")
    weights: Path | None = Field(None, description=_WEIGHTS)
    batch_size: AtLeastOne = Field(50, description="images at a time; the result does not depend on it")
    device: str = Field("auto", description=_DEVICE)
