"""What `bigroc eval gradients` takes: every field, with its range."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from eval.gradients.alignment import LIMIT, NEIGHBOURS, SIGMA
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, Positive


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BatchFlags(DeviceFlags):
    """Machine: where the work runs, and how much of it at once."""

    batch_size: AtLeastOne = Field(32, description="images at a time")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GradientsConfig(BatchFlags, CheckpointFlags):
    """Images: at which ones gradients are taken, and which ones stand for the data."""

    ckpt: str = Field(description="a classifier: an embedded name or a checkpoint file, anyone's")
    data: str = Field(description='labelled images: "cifar10", "cifar10:DIR", an .npz or a folder of class subfolders')
    reference: str | None = Field(
        None, description="labelled images that stand for the data, of the same size; the train split (null: data)"
    )
    limit: AtLeastOne | None = Field(LIMIT, description="gradients at the first so many images of data (null: all)")
    sigma: Positive = Field(SIGMA, description="noise of the smoothed data whose score is the yardstick, in [0,1]")
    neighbours: Annotated[int, Field(ge=2)] = Field(
        NEIGHBOURS, description="nearest reference images that span the data's directions at an image"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the target classes")
