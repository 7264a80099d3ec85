"""What `bigroc eval certify` takes: every field, with its range."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, Number, Positive, several
from robust_models.runtime.device import PRECISION, PrecisionChoice


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BatchFlags(DeviceFlags):
    """Machine: where the work runs, and how much of it at once."""

    batch_size: AtLeastOne = Field(500, description="noisy copies of an image at a time")
    precision: PrecisionChoice = Field("auto", description=PRECISION)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CertifyConfig(BatchFlags, CheckpointFlags):
    """Certificate: the noise, and how many samples of it say how much."""

    ckpt: str = Field(description="the base classifier: an embedded name or a checkpoint file, anyone's")
    data: str = Field(description='labelled images: "cifar10", "cifar10:DIR", an .npz or a folder of class subfolders')
    limit: AtLeastOne | None = Field(None, description="only the first so many images (null: all)")
    every: AtLeastOne = Field(1, description="every so-manieth image of them")
    sigma: Positive | None = Field(
        None, description="standard deviation of the noise, pixels in [0,1] (null: that of the classifier's training)"
    )
    n0: AtLeastOne = Field(100, description="samples that choose the class")
    n: AtLeastOne = Field(10_000, description="fresh samples that bound its probability; more certify larger radii")
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(0.001, description="chance that a certificate is wrong")
    radii: Annotated[tuple[Annotated[Number, Field(ge=0, allow_inf_nan=False)], ...], BeforeValidator(several)] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), description="L2 radii whose certified accuracy is printed, pixels in [0,1]"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the noise; image k's depends on (seed, k) alone")
    state: Path | None = Field(None, description="a file that keeps each certificate; the same command goes on from it")
    plot: Path | None = Field(None, description="the curve of certified accuracy by radius: .png, .svg or .pdf")

    @model_validator(mode="after")
    def _smooths_once(self) -> "CertifyConfig":
        if self.smoothing is not None:
            raise ValueError("smoothing: certify adds the noise itself; give --sigma, and leave smoothing out")
        return self
