"""What a refinement is: every flag of `bigroc refine`, with its range."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.images import OnError
from robust_models.runtime.config import DEVICE, STRICT, AtLeastOne, Number
from robust_models.runtime.device import PRECISION, PrecisionChoice
from robust_models.threat import NORMS, check_ball

GUESSES = ("pseudo", "debiased", "balanced")  # targets that come from the classifier itself
ONE_CLASS = "class:"


@dataclass(frozen=True, config=STRICT)
class RefineConfig(CheckpointFlags):
    ckpt: str = Field(description="an embedded classifier's name or a checkpoint file, anyone's; several: with commas")
    input: Path = Field(description="image set: a folder, .npz, .npy, .pt, .tar shards or parquet")
    out: Path = Field(description="where the refined set goes, of the same kind as the input")
    eps: Annotated[Number, Field(ge=0)] | Literal["auto"] = Field(
        description="radius, pixels in [0,1]; weak generators want 5, strong ones 1; auto: by --reference and --judge"
    )
    norm: str = Field(default="l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    loss: str = Field(default="ce", description="what the steps lower: ce, margin, log_odds")
    steps: AtLeastOne = Field(default=7, description="PGD steps")
    step_size: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="length of a step; default 1.5 * eps / steps"
    )
    center: Literal["input", "first_step"] = Field(
        default="input", description="the ball's centre; first_step is that of the paper's notebooks"
    )
    keep: Literal["last", "best"] = Field(default="last", description="which iterate is the result")
    targets: str | None = Field(
        default=None,
        description="given (the set's labels), pseudo, debiased or balanced (the classifier's guesses), class:NAME, or "
        "a .csv or .json file of labels; default: given where there are labels, else pseudo",
    )
    prior: str | None = Field(
        default=None, description="a .csv or .json of class weights that --targets balanced follows; null: uniform"
    )
    uncertain: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.0, description="images whose most probable class has less than this probability are left alone"
    )
    reference: Path | None = Field(default=None, description="real images, which --eps auto compares with")
    judge: str | None = Field(default=None, description="the classifier in whose features --eps auto compares")
    auto_images: Annotated[int, Field(ge=2)] = Field(
        default=1000, description="how many images --eps auto tries eps on; as many others judge its choice"
    )
    shard_size: AtLeastOne = Field(default=4096, description="images per shard, the unit that a resumed run keeps")
    batch_size: AtLeastOne = Field(
        default=128, description="images at once on a GPU; the CPU takes blocks of its own, so that results are alike"
    )
    grid: Path | None = Field(default=None, description="also write a picture of images before and after")
    grid_images: AtLeastOne = Field(default=32, description="how many images the picture shows")
    trajectory: Path | None = Field(default=None, description="also write the steps of a few images, .gif or .png")
    trajectory_images: AtLeastOne = Field(default=4, description="how many images --trajectory follows")
    on_error: OnError = Field(
        default="fail", description="what an unreadable image does: fail (before any work) or skip (named)"
    )
    overwrite: bool = Field(
        default=False, description="replace what stands at --out, and another run's unfinished work"
    )
    device: str = Field(default="auto", description=DEVICE)
    precision: PrecisionChoice = Field(default="auto", description=PRECISION)

    @property
    def ckpts(self) -> list[str]:
        """The classifiers one by one; a file whose name has a comma is itself."""
        return [self.ckpt] if Path(self.ckpt).exists() else [name.strip() for name in self.ckpt.split(",")]

    @model_validator(mode="after")
    def _consistent(self) -> "RefineConfig":
        if self.eps == "auto":
            check_ball(self.norm, 0)
            if self.reference is None or self.judge is None:
                raise ValueError("eps: auto needs --reference REAL_IMAGES and --judge CLASSIFIER")
        else:
            check_ball(self.norm, self.eps)
        if self.targets is not None and not _is_target(self.targets):
            raise ValueError(
                f"targets: {self.targets!r} is none of given, {', '.join(GUESSES)}, {ONE_CLASS}NAME, "
                "or a .csv or .json file of labels"
            )
        if self.prior is not None and self.targets != "balanced":
            raise ValueError(f"prior: {self.prior!r} is for --targets balanced; this run's targets are {self.targets}")
        return self


def _is_target(text: str) -> bool:
    return text in ("given", *GUESSES) or text.startswith(ONE_CLASS) or Path(text).suffix in (".csv", ".json")
