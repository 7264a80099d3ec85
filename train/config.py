"""What a training run is: every field of a recipe, with its range."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from robust_models.classifier import NORMALIZERS
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.runtime.config import STRICT, Number
from robust_models.runtime.device import PrecisionChoice
from robust_models.threat import NORMS, check_ball
from train.schedule import at

Fraction = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    path: str = Field(
        default="cifar10", description='"cifar10", "cifar10:DIR", an .npz or a folder of class subfolders'
    )
    class_names: tuple[str, ...] | Literal["cifar10"] = Field(default=(), description="names for an .npz that has none")
    validation: Count = Field(default=1000, description="last images of the train split, held out to select the model")

    @property
    def names(self) -> tuple[str, ...]:
        return CIFAR10_CLASSES if self.class_names == "cifar10" else self.class_names


@dataclass(frozen=True, config=STRICT)
class AugmentConfig:
    crop_padding: Count = Field(default=4, description="pixels of zero padding before the random crop")
    flip: bool = Field(default=True, description="mirror half of the images")
    jitter: Fraction = Field(default=0.0, description="brightness, contrast and saturation each vary by this factor")
    rotation: NonNegative = Field(default=0.0, description="degrees to either side")


@dataclass(frozen=True, config=STRICT)
class AttackConfig:
    norm: str = Field(default="l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    eps: NonNegative = Field(default=0.5, description="radius, pixels in [0,1]; 0 trains without attack")
    step_size: Positive | dict[Fraction, Positive] = Field(
        default=0.1, description="length of a PGD step; or {progress: length} from that share of the run on"
    )
    steps: Count | dict[Fraction, Count] = Field(default=7, description="PGD steps; or {progress: steps}")
    random_start: bool = Field(default=False, description="start anywhere in the ball instead of at the image")

    @model_validator(mode="after")
    def _consistent(self) -> "AttackConfig":
        check_ball(self.norm, self.eps)
        for name, value in (("step_size", self.step_size), ("steps", self.steps)):
            if isinstance(value, dict) and 0 not in value:
                raise ValueError(f"{name}: {value} does not say what holds from progress 0 on")
        return self

    def steps_at(self, progress: float) -> int:
        return at(self.steps, progress)

    def step_size_at(self, progress: float) -> float:
        return at(self.step_size, progress)


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    lr: Positive = Field(default=0.1, description="peak learning rate of SGD at this batch size")
    momentum: Fraction = Field(default=0.9)
    nesterov: bool = Field(default=False)
    weight_decay: NonNegative = Field(default=5e-4, description="on every parameter")
    schedule: Literal["step", "one_cycle"] = Field(default="step", description="lr over the run")
    step_epochs: Annotated[int, Field(ge=1)] = Field(
        default=50, description="schedule=step: lr / 10 every so many epochs"
    )
    warmup: Fraction = Field(
        default=0.2, description="schedule=one_cycle: share of the run in which lr rises, then a cosine"
    )


@dataclass(frozen=True, config=STRICT)
class ValidationConfig:
    every_epochs: Annotated[int, Field(ge=1)] = Field(default=1)
    steps: Annotated[int, Field(ge=1)] = Field(
        default=10, description="PGD steps of length 2.5 * eps / steps, random start"
    )


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    out: Path = Field(description="run folder, default runs/RECIPE; the same command run again continues there")
    arch: str = Field(default="resnet50", description="a name of robust_models.architectures")
    activation: str = Field(default="relu", description="relu, silu or softplus")
    normalize: str = Field(default="cifar10", description=f"normaliser inside the classifier: {', '.join(NORMALIZERS)}")
    epochs: Annotated[int, Field(ge=1)] = Field(default=150)
    batch_size: Annotated[int, Field(ge=1)] = Field(default=128)
    label_smoothing: Fraction = Field(default=0.0)
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.0, description="per step; 0 keeps the last weights"
    )
    seed: Count = Field(default=0)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    precision: PrecisionChoice = Field(default="auto", description="auto is bf16 where the hardware multiplies it")
    compile: bool = Field(default=False, description="torch.compile the network")
    log_every: Annotated[int, Field(ge=1)] = Field(default=20, description="steps between rows of metrics")
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    attack: AttackConfig = Field(default_factory=AttackConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    validate: ValidationConfig = Field(default_factory=ValidationConfig)

    @field_validator("normalize")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NORMALIZERS:
            raise ValueError(f"{name!r} is none of {', '.join(NORMALIZERS)}")
        return name
