"""What `bigroc eval robust` takes: every field, with its range."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from eval.robust.attacks import LIBRARIES, PLAIN, Budget, check_attack_name
from eval.robust.balls import AUTO, find_balls, parse_threats
from eval.robust.stages import Ball
from robust_models import Description
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, Positive
from robust_models.runtime.device import MEASURED_PRECISION, PrecisionChoice
from robust_models.threat import NORMS, NormName, check_ball


def parse_radii(value: Any) -> float | tuple[float, ...]:
    """A number, "8/255", or several as a list or as text with commas: "2/255,4/255"."""
    several = value.split(",") if isinstance(value, str) and "," in value else value
    if isinstance(several, list | tuple):
        return tuple(_radius(one) for one in several)
    return _radius(several)


def _radius(value: Any) -> float:
    try:
        radius = math.nan if isinstance(value, bool) else float(Fraction(value) if _is_fraction(value) else value)
    except (ValueError, TypeError, ZeroDivisionError):
        radius = math.nan
    if not math.isfinite(radius):
        raise PydanticCustomError("radius", "input should be a number, or several with commas between them")
    if radius < 0:
        raise PydanticCustomError("radius", "input should be greater than or equal to 0")
    return radius


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


Radii = Annotated[float | tuple[float, ...], BeforeValidator(parse_radii)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AttackFlags:
    """Attack: how images are attacked, and in which ball around them."""

    eps: Radii | None = Field(
        None, description="radius of the ball, pixels in [0,1]; 8/255 is a number here; several: 0.25,0.5,1"
    )
    norm: NormName = Field("l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    threats: Annotated[str | tuple[str, ...] | None, BeforeValidator(parse_threats)] = Field(
        None,
        description="balls of several norms instead of eps and norm: l2:0.5,linf:8/255; own: the one that the "
        "checkpoint states; auto: that and its like in the other norms (null: auto where no eps is given)",
    )
    attack: str = Field("pgd", description=f"{', '.join(PLAIN)}, or LIBRARY:CLASS with {', '.join(LIBRARIES)}")
    steps: AtLeastOne | None = Field(
        None, description="gradient steps of each run (null: 20 where there is a step size, else the attack's own)"
    )
    step_size: Positive | None = Field(None, description="length of a step, pixels in [0,1] (null: 2.5 * eps / steps)")
    restarts: AtLeastOne = Field(1, description="runs for each image; it counts as robust if it withstands all")
    random_start: bool = Field(True, description="start where the attack does: pgd anywhere in the ball (false: at x)")
    early_stop: bool = Field(True, description="pgd: any point of a run may break the image (false: only its last)")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MachineFlags(DeviceFlags):
    """Machine: where the work runs, how much of it at once, and how exactly."""

    batch_size: AtLeastOne = Field(250, description="images at a time; the result of pgd does not depend on it")
    precision: PrecisionChoice = Field("fp32", description=MEASURED_PRECISION)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RobustConfig(AttackFlags, MachineFlags, CheckpointFlags):
    """Images: which ones, and what is kept of their measurement."""

    ckpt: str = Field(description="a classifier: an embedded name or a checkpoint file, anyone's")
    data: str = Field(description='labelled images: "cifar10", "cifar10:DIR", an .npz or a folder of class subfolders')
    limit: AtLeastOne | None = Field(None, description="only the first so many images (null: all)")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of all that is drawn")
    state: Path | None = Field(None, description="file kept after each batch; the same command goes on from it")
    sanity: bool = Field(False, description="also look for signs of masked gradients, on a few images")
    calibration: bool = Field(
        False, description="also the expected calibration error, before and after a temperature from half of the images"
    )
    corruptions: Path | None = Field(
        None, description="also the accuracy on corrupted images: the folder of CIFAR-10-C's .npy files"
    )
    ood: Path | None = Field(
        None, description="also how well its outputs tell `data` from other images (AUROC): any image set"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "RobustConfig":
        if self.eps == ():
            raise ValueError("eps: no radius given")
        if self.threats is not None and (self.eps is not None or self.norm != "l2"):
            raise ValueError("threats: name norms and radii themselves; leave out eps and norm")
        if self.eps is None and self.norm != "l2":
            raise ValueError(f"eps: norm={self.norm} needs a radius; or leave norm out too, and give threats")
        for eps in self.radii:
            check_ball(self.norm, eps)
        check_attack_name(self.attack)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts: {self.restarts} runs without a random start would all be the same")
        return self

    def balls(self, description: Description, num_pixels: int) -> tuple[list[Ball], str]:
        """Those to attack in, and in words where they come from: "" where the person gave them.

        num_pixels: channels * height * width of an image.
        """
        if self.eps is not None:
            return [Ball(self.norm, eps) for eps in self.radii], ""
        trained = description.threat_model
        return find_balls(self.threats or AUTO, trained=trained, num_pixels=num_pixels, attack=self.attack)

    def budget(self, ball: Ball, num_classes: int) -> Budget:
        """What an attack may spend in the ball."""
        own = ("steps", "step_size", "random_start", "restarts", "seed", "early_stop")
        return Budget(ball.norm, ball.eps, num_classes, **{name: getattr(self, name) for name in own})

    @property
    def radii(self) -> tuple[float, ...]:
        """Each radius of eps once, growing."""
        if self.eps is None:
            return ()
        return tuple(sorted(set(self.eps))) if isinstance(self.eps, tuple) else (self.eps,)
