"""What `bigroc studio` takes: every field, with its range."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from refine.flags import ClassifierFlags
from robust_models.runtime.config import STRICT, DeviceFlags
from robust_models.runtime.device import PRECISION, PrecisionChoice


@dataclass(frozen=True, config=STRICT, kw_only=True)
class StudioConfig(DeviceFlags, ClassifierFlags):
    """Studio: with which classifier, where the page is, and where what is saved goes."""

    ckpt: str = Field(
        default="cifar10-l2-small", description="an embedded classifier's name or a checkpoint file, anyone's"
    )
    out: Path = Field(default=Path("studio"), description="folder of what is saved, a folder in it for each picture")
    images: Path | None = Field(
        default=None,
        description="image set whose images show what excites a feature (null: the embedded test images, where the "
        "classes are CIFAR-10's)",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8766, description="of the page; 0: any free one")
    precision: PrecisionChoice = Field(default="auto", description=PRECISION)
