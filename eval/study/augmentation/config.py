"""What an augmentation study is: every field of its recipe, with its range."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from eval.study.config import BY_EITHER_NAME, Seed, check_once
from refine.config import RefineConfig
from robust_models.errors import UserError
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, Number, resolve, several
from robust_models.threat import NORMS, NormName, check_ball
from train.config import Count

NONE = "none"  # what tables call training without added samples
TRAINED = "trained:"
Amounts = Annotated[tuple[Count, ...], BeforeValidator(several)]


@dataclass(frozen=True, config=BY_EITHER_NAME)
class TrainingSpec:
    """A way to train: the study's train recipe with changes."""

    name: str = Field(min_length=1, description="what tables call it")
    changes: dict[str, Any] = Field(default_factory=dict, alias="with", description="fields of the recipe to change")


@dataclass(frozen=True, config=STRICT)
class AddedSpec:
    """A generator's samples, as they are or refined first."""

    name: str = Field(min_length=1, description="what tables call it")
    path: Path = Field(description="an image set of any kind; bundled:NAME is one that comes with the package")
    refine: dict[str, Any] | None = Field(
        default=None,
        description="fields of bigroc refine; samples get its targets for labels. ckpt: trained:NAME is the classifier "
        "that training NAME makes of the same real images alone (null: as they are, with the set's labels)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "AddedSpec":
        if self.name == NONE:
            raise ValueError(f"name: {NONE} is what training without added samples is called; choose another")
        if self.refine is not None:
            self.refinement(str(self.refine.get("ckpt", "")), self.path, Path("refined.npz"), "cpu")
        return self

    def refinement(self, ckpt: str, images: Path, out: Path, device: str) -> RefineConfig:
        """The configuration of bigroc refine. UserError, begun with the set's name, where it does not fit."""
        places = {"input": str(images), "out": str(out), "device": device}
        try:
            if strange := sorted({*places} & {*(self.refine or {})}):
                raise UserError(f"{strange[0]}: the study chooses it")
            return resolve(RefineConfig, {"device": device, **(self.refine or {}), "ckpt": ckpt, **places})
        except UserError as error:
            raise UserError(f"added.{self.name}.refine.{error}") from error

    @property
    def moves(self) -> bool:
        """Whether the samples are changed; with refine.eps 0 they get new labels only."""
        return self.refine is not None and self.refinement("any", self.path, Path("refined.npz"), "cpu").eps != 0

    @property
    def trained_by(self) -> str | None:
        """The training whose classifier refines; None where it is a checkpoint."""
        ckpt = str((self.refine or {}).get("ckpt", ""))
        return ckpt.removeprefix(TRAINED) if ckpt.startswith(TRAINED) else None


@dataclass(frozen=True, config=STRICT)
class AttackedSpec:
    """How robust accuracy is measured: PGD as bigroc eval robust runs it, steps of 2.5 * eps / steps."""

    norm: NormName = Field(default="l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    eps: Annotated[Number, Field(gt=0)] = Field(default=0.5, description="radius, pixels in [0,1]")
    steps: AtLeastOne = Field(default=20, description="of PGD")

    @model_validator(mode="after")
    def _consistent(self) -> "AttackedSpec":
        check_ball(self.norm, self.eps)
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AugmentationConfig(DeviceFlags):
    """Study: how much real data, what is added to it, and how classifiers are trained on both."""

    out: Path = Field(description="the study's folder; the same command continues there")
    title: str = Field(default="Augmentation", description="of the report")
    data: str = Field(description="real training images, as bigroc train takes them; bundled:NAME as well")
    test: str | None = Field(
        default=None, description="real images that measure the classifiers (null: the last `held_out` of data)"
    )
    held_out: Count = Field(default=0, description="images at the end of data that no classifier trains on")
    amounts: Amounts = Field(
        min_length=1,
        description="of real images, drawn anew for each seed; 0: samples alone, whose result is the Classification "
        "Accuracy Score",
    )
    added: tuple[AddedSpec, ...] = Field(min_length=1, description="[{name, path, refine}, ...]: samples to train on")
    share: Annotated[Number, Field(gt=0, lt=1)] = Field(default=0.7, description="of samples in each batch")
    train: str = Field(description="a recipe of bigroc train")
    trainings: tuple[TrainingSpec, ...] = Field(
        min_length=1, description="[{name, with: fields of the recipe to change}, ...]"
    )
    updates: AtLeastOne = Field(description="optimizer steps of every classifier, whatever it trains on")
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(several)] = Field(
        default=(0, 1, 2), description="of the draw of real images and of training; intervals are over these"
    )
    robust: AttackedSpec = Field(default_factory=AttackedSpec)

    @model_validator(mode="after")
    def _consistent(self) -> "AugmentationConfig":
        check_once("added", [one.name for one in self.added])
        check_once("trainings", [one.name for one in self.trainings])
        for axis in ("amounts", "seeds"):
            check_once(axis, getattr(self, axis))
        if self.test is None and self.held_out == 0:
            raise ValueError("test: none, and held_out is 0: nothing measures the classifiers; give one of them")
        names = [one.name for one in self.trainings]
        for one in self.added:
            if one.trained_by is not None and one.trained_by not in names:
                raise ValueError(
                    f"added.{one.name}.refine.ckpt: no training {one.trained_by!r}; there are {', '.join(names)}"
                )
        return self
