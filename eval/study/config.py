"""What a study is: every field of its recipe, with its range."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from eval.quality.config import Protocol
from eval.study.results import Axes
from refine.config import AUTO_NORMS, RefineConfig
from refine.method import LOSSES, find_loss
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.errors import UserError
from robust_models.runtime.config import (
    STRICT,
    AtLeastOne,
    DeviceFlags,
    Number,
    overlaid,
    read_recipe,
    resolve,
    several,
)
from robust_models.runtime.device import MEASURED_PRECISION, PrecisionChoice
from robust_models.threat import check_ball

AUTO = "auto"
AXES = tuple(name for name in Axes.__dataclass_fields__)
BY_EITHER_NAME = ConfigDict(extra="forbid", populate_by_name=True)  # a resolved config is valid again
Seed = Annotated[int, Field(ge=0)]
StopName = Literal["never", "median", "confidence", "distance"]
Radius = Annotated[Number, Field(gt=0)]


Names = Annotated[tuple[str, ...], BeforeValidator(several)]
Radii = Annotated[tuple[Radius, ...], BeforeValidator(several)]
EpsValues = Annotated[tuple[Radius | Literal["auto"], ...], BeforeValidator(several), Field(min_length=1)]


@dataclass(frozen=True, config=BY_EITHER_NAME, kw_only=True)
class ClassifierSpec(CheckpointFlags):
    """A checkpoint, or a train recipe that is run when its result is missing."""

    name: str = Field(min_length=1, description="what tables call it")
    ckpt: str | None = Field(default=None, description="an embedded or published name, or a checkpoint file, anyone's")
    train: str | None = Field(default=None, description="a recipe of bigroc train")
    changes: dict[str, Any] = Field(default_factory=dict, alias="with", description="fields of the recipe to change")

    @model_validator(mode="after")
    def _consistent(self) -> "ClassifierSpec":
        if (self.ckpt is None) == (self.train is None):
            given = "neither" if self.ckpt is None else "both"
            raise ValueError(f"ckpt: {self.name} has {given} of ckpt and train; give one of them")
        if self.changes and self.train is None:
            raise ValueError(f"with: {self.name} has no train recipe whose fields it could change")
        return self


@dataclass(frozen=True, config=STRICT)
class ImagesSpec:
    """Images to refine, what tables call them, and where they are to be refined otherwise than the study has it."""

    name: str = Field(min_length=1, description="what tables call it")
    path: Path = Field(description="an image set of any kind; bundled:NAME is one that comes with the package")
    limit: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="so many of its images, drawn by the seed"
    )
    eps: EpsValues | None = Field(default=None, description="in the place of the study's, where that has one norm")
    targets: Names | None = Field(default=None, description="in the place of the study's")


@dataclass(frozen=True, config=STRICT)
class RobustSpec:
    """How each classifier's accuracy is measured, on `data`: PGD as bigroc eval robust runs it."""

    eps: dict[str, Radii] = Field(default_factory=dict, description="radii by norm: {l2: [0.25, 0.5], linf: [4/255]}")
    steps: AtLeastOne = Field(default=20, description="of PGD, each of length 2.5 * eps / steps")
    restarts: AtLeastOne = Field(default=1, description="runs for each image")
    limit: AtLeastOne | None = Field(default=None, description="only the first so many images of data (null: all)")
    batch_size: AtLeastOne = Field(default=250, description="images at a time")

    @model_validator(mode="after")
    def _consistent(self) -> "RobustSpec":
        for norm, radii in self.eps.items():
            for eps in radii:
                check_ball(norm, eps)
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AxisFlags:
    """Axes: the settings of refinement that are combined; one value or several."""

    eps: EpsValues | dict[str, EpsValues] = Field(
        description="radii, pixels in [0,1]; auto: as bigroc refine finds it, by this study's judges and real images; "
        "with several norms {norm: radii}"
    )
    norm: Names = Field(default=("l2",), description="geometries of the ball")
    steps: Annotated[tuple[AtLeastOne, ...], BeforeValidator(several)] = Field(default=(7,), description="PGD steps")
    targets: Names = Field(
        default=(), description="as refine has them; none: given where there are labels, else pseudo"
    )
    loss: Names = Field(default=("ce",), description=f"what the steps lower: {', '.join(LOSSES)}")
    stop: Annotated[tuple[StopName, ...], BeforeValidator(several)] = Field(
        default=("never",),
        description="when an image takes no further steps: never, or at the median of the real images, of their energy "
        "(median), of their confidence or of their distance from the mean of their class in the features",
    )
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(several)] = Field(
        default=(0,), description="which images a set's limit draws; nothing else in a cell is random"
    )
    vary: Names = Field(default=("eps",), description="the axes of interest, the one for the x axis first")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class JudgeFlags:
    """Judge: what scores the images, and what they are compared with."""

    judge: str = Field(
        description="feature spaces that score, as eval quality has them, with commas: the first leads, the others are "
        "second opinions; auto: inception-768 and efficientnet-lite0-128 as far as they are at hand (ImageNet "
        "classifiers: no judges of ImageNet classifiers' work), else the bundled CIFAR-10 classifier"
    )
    reference: Path = Field(description="real images, or their stored statistics in the first judge's features")
    reference_images: Path | None = Field(
        default=None,
        description="real images that KID, precision and recall compare with (null: reference, where it is images)",
    )
    weights: str | None = Field(
        default=None,
        description="judge inception: file or URL of the network (null: torch's hub cache, or a download)",
    )
    protocol: Protocol | None = Field(default=None, description="judge inception: as eval quality has it")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ReportFlags:
    """Report: what it says, and where it is kept."""

    out: Path = Field(description="the study's folder; the same command continues there")
    title: str = Field(default="Study", description="of the report")
    question: str = Field(default="", description="what the study is to answer, for the report")
    keep_images: bool = Field(default=False, description="leave the refined sets in OUT/cells/KEY/")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MachineFlags(DeviceFlags):
    """Machine: where the work runs, how much of it at once, and how exactly."""

    batch_size: AtLeastOne = Field(default=50, description="images the judge sees at a time; no result depends on it")
    precision: PrecisionChoice = Field(default="fp32", description=f"of refining: {MEASURED_PRECISION}")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class StudyConfig(AxisFlags, JudgeFlags, ReportFlags, MachineFlags):
    """Study: which classifiers refine which images, and the images that measure the classifiers."""

    classifiers: tuple[ClassifierSpec, ...] = Field(min_length=1, description="[{name, ckpt or train, ...}, ...]")
    images: tuple[ImagesSpec, ...] = Field(min_length=1, description="[{name, path, limit}, ...]: what is refined")
    data: str | None = Field(default=None, description="labelled test images, to measure the classifiers' accuracy on")
    robust: RobustSpec = Field(default_factory=RobustSpec)

    def radii(self, norm: str, images: ImagesSpec | None = None) -> tuple[float | Literal["auto"], ...]:
        """The axis eps at one norm, for one of the image sets."""
        if images is not None and images.eps is not None:
            return images.eps
        return self.eps[norm] if isinstance(self.eps, dict) else self.eps

    @property
    def has_auto(self) -> bool:
        """Whether some eps is to be found by comparing with real images."""
        return any(AUTO in self.radii(norm, images) for norm in self.norm for images in self.images)

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        for axis, names in (("classifiers", self.classifiers), ("images", self.images)):
            check_once(axis, [one.name for one in names])
        for axis in ("norm", "steps", "targets", "loss", "stop", "seeds", "vary"):
            check_once(axis, getattr(self, axis))
        if isinstance(self.eps, dict) and set(self.eps) != set(self.norm):
            raise ValueError(f"eps: has radii for {', '.join(self.eps)}, but norm is {', '.join(self.norm)}")
        for images in self.images:
            if images.eps is not None and len(self.norm) > 1:
                raise ValueError(
                    f"images: {images.name} has eps of its own, but the study has {len(self.norm)} norms: leave one"
                )
            check_once(f"images: {images.name}: targets", images.targets or ())
        for norm, images in itertools.product(self.norm, self.images):
            whose = "" if images.eps is None else f"images: {images.name}: "
            check_once(f"{whose}eps", self.radii(norm, images))
            for eps in self.radii(norm, images):
                _check_eps(norm, eps)
        for axis in self.vary:
            if axis not in AXES:
                raise ValueError(f"vary: {axis!r} is no axis; there are {', '.join(AXES)}")
        if len(self.seeds) > 1 and all(one.limit is None for one in self.images):
            raise ValueError(
                f"seeds: {len(self.seeds)} of them, but no image set has a limit: nothing is drawn, all would be equal"
            )
        if self.robust.eps and self.data is None:
            raise ValueError("robust: needs labelled test images to attack; give data")
        for loss in self.loss:
            find_loss(loss)
        for targets in {*self.targets, *(targets for images in self.images for targets in images.targets or ())}:
            values = {"ckpt": "any", "input": "any", "out": "any", "eps": 0, "targets": targets}
            resolve(RefineConfig, values)
        return self


def _check_eps(norm: str, eps: float | Literal["auto"]) -> None:
    if eps != AUTO:
        check_ball(norm, eps)
    elif norm not in AUTO_NORMS:
        raise ValueError(f"eps: auto knows where to begin for {', '.join(AUTO_NORMS)}; give numbers for norm {norm}")


def check_once(axis: str, values: Any) -> None:
    """ValueError where a value stands twice."""
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"{axis}: {twice[0]} stands twice; each has to differ")


QUICK = "quick"  # a recipe's section of changes for --quick


def recipe_values(recipe: str, *, quick: bool) -> dict[str, Any]:
    """The recipe's fields, or those of its quick form, with a folder of its own for either."""
    values = read_recipe(recipe)
    changes = values.pop(QUICK, None)
    if not quick:
        return {**folder_of(recipe), **values}
    if not isinstance(changes, dict):
        raise UserError(f"--quick: {recipe} has no quick form; run it without")
    return {**folder_of(f"{Path(recipe).stem}-quick"), **overlaid(values, changes)}


def folder_of(recipe: str) -> dict[str, Any]:
    """Where a study keeps what it finds, unless its recipe says otherwise."""
    return {"out": f"runs/studies/{Path(recipe).stem}"}
