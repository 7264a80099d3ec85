"""What a refinement is: every flag of `python -m refine`, with its range."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.images import OnError
from robust_models.runtime.config import STRICT, Number
from robust_models.runtime.device import PrecisionChoice
from robust_models.threat import NORMS, check_ball

AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class RefineConfig:
    ckpt: str = Field(description="an embedded classifier's name, or a checkpoint file, anyone's")
    input: Path = Field(description="image set: an .npz or a folder")
    out: Path = Field(description="where the refined set goes, of the same kind as the input")
    eps: Annotated[Number, Field(ge=0)] = Field(
        description="radius, pixels in [0,1]; weak generators want 5, strong ones 1"
    )
    arch: str | None = Field(default=None, description="a foreign checkpoint's network; null: from its tensors' shapes")
    normalize: str | None = Field(default=None, description="its normaliser: cifar10, imagenet, none; null: the file's")
    norm: str = Field(default="l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    steps: AtLeastOne = Field(default=7, description="PGD steps")
    step_size: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="length of a step; default 1.5 * eps / steps"
    )
    targets: Literal["given", "pseudo"] | None = Field(
        default=None,
        description="the set's labels (given) or the classifier's own guess; default: given where there are labels",
    )
    batch_size: AtLeastOne = Field(default=128)
    grid: Path | None = Field(default=None, description="also write a picture of images before and after")
    grid_images: AtLeastOne = Field(default=32, description="how many images the picture shows")
    on_error: OnError = Field(
        default="fail", description="what an unreadable image does: fail (before any work) or skip (named)"
    )
    overwrite: bool = Field(default=False, description="replace what stands at --out")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    precision: PrecisionChoice = Field(default="auto", description="auto is bf16 where the hardware multiplies it")

    @model_validator(mode="after")
    def _consistent(self) -> "RefineConfig":
        check_ball(self.norm, self.eps)
        return self
