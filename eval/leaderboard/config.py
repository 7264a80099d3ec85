"""What `bigroc models evaluate` takes: every field, with its range."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.checkpoints import embedded_names
from robust_models.checkpoints.flags import split_checkpoints
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, Number, several

PartName = Literal["balls", "apgd", "autoattack", "gradients", "gains"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class EvaluateConfig(DeviceFlags):
    """Measurements: of which classifiers, what, on which images."""

    models: str = Field(default="", description="classifiers: embedded names or anyone's files, with commas")
    all: bool = Field(default=False, description="all embedded classifiers as well")
    out: Path = Field(description="folder of what was measured; the same command goes on there")
    parts: Annotated[tuple[PartName, ...], BeforeValidator(several)] = Field(
        min_length=1,
        default=get_args(PartName),
        description="balls (PGD-20 in several norms, calibration, and with their images corruptions and detection), "
        "apgd, autoattack (hours on a CPU), gradients, gains (of refinement, as a study)",
    )
    data: str = Field(
        default="bundled:cifar10-test-500", description="labelled test images: as eval robust has them, or bundled:NAME"
    )
    threats: str = Field(
        default="l2:0.25,l2:0.5,l2:1,linf:4/255,linf:8/255,l1:12", description="the balls, as eval robust has them"
    )
    eps: Annotated[Number, Field(gt=0)] = Field(
        default=0.5, description="L2 radius of apgd and autoattack, pixels in [0,1]"
    )
    corruptions: Path | None = Field(default=None, description="folder of CIFAR-10-C's .npy files (null: left out)")
    ood: str | None = Field(
        default="bundled:vae-cifar10", description="images of another kind that outputs are to tell (null: left out)"
    )
    reference: str | None = Field(default=None, description="labelled train images for the gradients (null: data)")
    images: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        default=("bundled:vae-cifar10", "bundled:dcgan-cifar10", "bundled:cgan-pd-cifar10"),
        description="generated sets to refine, with commas",
    )
    refine_eps: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], BeforeValidator(several)] = Field(
        default=(1.0, 3.0), description="L2 radii of refinement, pixels in [0,1]"
    )
    judge: str = Field(default="auto", description="feature spaces that judge the gains, as a study has them")
    weights: Path | None = Field(default=None, description="the Inception network's file, where it judges")
    limit: AtLeastOne | None = Field(default=None, description="only the first so many test images (null: all)")
    table: Path | None = Field(default=None, description="also write the leaderboard there, in Markdown")

    @property
    def names(self) -> list[str]:
        """The classifiers one by one, each once."""
        given = split_checkpoints(self.models) if self.models else []
        return list(dict.fromkeys([*filter(None, given), *(embedded_names() if self.all else [])]))

    @model_validator(mode="after")
    def _has_some(self) -> "EvaluateConfig":
        if not self.names:
            raise ValueError("models: none given; name some, or pass --all for all embedded ones")
        return self
