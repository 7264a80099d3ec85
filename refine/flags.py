"""Flags that refinement and the synthesis tasks share; what is one command's own is in its config."""

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.grids import check_picture_out
from robust_models.images import OnError
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags
from robust_models.runtime.device import PRECISION, PrecisionChoice


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ClassifierFlags(CheckpointFlags):
    """Which classifier, and how to read its file."""

    ckpt: str = Field(description="an embedded classifier's name or a checkpoint file, anyone's")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ReadingFlags:
    """Input: which images to begin with."""

    on_error: OnError = Field(
        default="fail", description="what an unreadable image does: fail (before any work) or skip (named)"
    )
    limit: AtLeastOne | None = Field(
        default=None, description="only the first so many images; the others are not opened (null: all)"
    )


IMAGES = "a folder, .npz, .npy, .pt, .tar shards, parquet, or one image file; as the first word it needs no flag"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InputFlags(ReadingFlags):
    """Input: which images to begin with."""

    input: Path = Field(description=f"images: {IMAGES}")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GridFlags:
    """Picture: what people look at."""

    grid: Path | None = Field(default=None, description="also write a picture of images before and after")
    grid_images: AtLeastOne = Field(default=32, description="how many images the picture shows")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PictureFlags(GridFlags):
    """Picture: what people look at."""

    trajectory: Path | None = Field(default=None, description="also write the steps of a few images, .gif or .png")
    trajectory_images: AtLeastOne = Field(default=4, description="how many images --trajectory follows")


def check_pictures_out(flags: PictureFlags) -> None:
    """UserError, before any work, where a picture would replace what this program did not make."""
    check_picture_out(flags.grid, "grid")
    check_picture_out(flags.trajectory, "trajectory")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MachineFlags(DeviceFlags):
    """Machine: where the work runs, how much of it at once, and how exactly."""

    batch_size: AtLeastOne = Field(
        default=128, description="images at once on a GPU; the CPU takes blocks of its own, so that results are alike"
    )
    precision: PrecisionChoice = Field(default="auto", description=PRECISION)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TaskFlags(MachineFlags, ClassifierFlags):
    """What every task has."""
