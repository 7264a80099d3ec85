"""What each measurement takes: every field, with its range."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eval.attacks import Budget, check_attack_name
from eval.radii import Radii
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.runtime.config import STRICT, Number
from robust_models.runtime.device import PrecisionChoice
from robust_models.threat import NORMS, check_ball

Positive = Annotated[Number, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

_DEVICE = "auto, cpu, cuda, cuda:1, ..."
_FEATURES = "classifier:NAME_OR_FILE, inception (2048-d, the FID's), inception-768, -192 or -64, or dinov2"
_WEIGHTS = "file or URL of the Inception network (null: the copy in torch's hub cache, else a download)"
_PROTOCOL = "how pixels reach Inception: pytorch-fid, tf (torch-fidelity), clean or adm (null: pytorch-fid)"
_CACHE = "folder where statistics are kept; auto: the user's cache, none: nowhere"
METRICS = ("fid", "is", "kid", "prc", "sfid", "fd-dinov2")
Protocol = Literal["pytorch-fid", "tf", "clean", "adm"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RobustConfig(CheckpointFlags):
    ckpt: str = Field(description="a classifier: an embedded name or a checkpoint file, anyone's")
    data: str = Field(description='labelled images: "cifar10", "cifar10:DIR", an .npz or a folder of class subfolders')
    eps: Radii = Field(description="radius of the ball, pixels in [0,1]; 8/255 is a number here; several: 0.25,0.5,1")
    norm: str = Field("l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    attack: str = Field(
        "pgd", description="pgd, apgd, autoattack, or LIBRARY:CLASS with advertorch, foolbox or torchattacks"
    )
    steps: AtLeastOne | None = Field(
        None, description="gradient steps of each run (null: 20 where there is a step size, else the attack's own)"
    )
    step_size: Positive | None = Field(None, description="length of a step (null: 2.5 * eps / steps)")
    restarts: AtLeastOne = Field(1, description="runs for each image; it counts as robust if it withstands all")
    random_start: bool = Field(True, description="start where the attack does: pgd anywhere in the ball (false: at x)")
    early_stop: bool = Field(True, description="pgd: any point of a run may break the image (false: only its last)")
    limit: AtLeastOne | None = Field(None, description="only the first so many images (null: all)")
    batch_size: AtLeastOne = Field(250, description="images at a time; the result of pgd does not depend on it")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of all that is drawn")
    state: Path | None = Field(None, description="file kept after each batch; the same command goes on from it")
    sanity: bool = Field(False, description="also look for signs of masked gradients, on a few images")
    device: str = Field("auto", description=_DEVICE)
    precision: PrecisionChoice = Field("fp32", description="fp32 for figures to quote; bf16 for a quick look")

    @model_validator(mode="after")
    def _consistent(self) -> "RobustConfig":
        if not self.radii:
            raise ValueError("eps: no radius given")
        for eps in self.radii:
            check_ball(self.norm, eps)
        check_attack_name(self.attack)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts: {self.restarts} runs without a random start would all be the same")
        return self

    @property
    def radii(self) -> tuple[float, ...]:
        """Each radius once, growing."""
        return tuple(sorted(set(self.eps))) if isinstance(self.eps, tuple) else (self.eps,)

    def budget(self, eps: float, num_classes: int) -> Budget:
        """What the attack may spend at one radius."""
        own = ("norm", "steps", "step_size", "random_start", "restarts", "seed", "early_stop")
        return Budget(eps=eps, num_classes=num_classes, **{name: getattr(self, name) for name in own})


@dataclass(frozen=True, config=STRICT)
class QualityConfig:
    images: Path = Field(description="image set to judge, of any kind; or an .npz of stored statistics")
    reference: Path | None = Field(
        None, description="image set to compare with, likewise; the Inception Score has none"
    )
    features: str = Field("inception", description=_FEATURES)
    metrics: str = Field("fid", description=f"with commas: {', '.join(METRICS)}; fid is the Frechet distance")
    protocol: Protocol | None = Field(None, description=_PROTOCOL)
    weights: str | None = Field(None, description=_WEIGHTS)
    per_class: bool = Field(False, description="also the Frechet distance of each class; both sets need labels")
    bootstrap: Annotated[int, Field(ge=0)] = Field(0, description="resamples for a 95 % interval of the distance")
    infinite: bool = Field(False, description="also the Frechet distance extrapolated to infinitely many images")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of --bootstrap and --infinite")
    cache: str = Field("auto", description=_CACHE)
    batch_size: AtLeastOne = Field(50, description="images at a time; the result does not depend on it")
    device: str = Field("auto", description=_DEVICE)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Each metric once, in the order given."""
        return tuple(dict.fromkeys(name.strip() for name in self.metrics.split(",")))

    @model_validator(mode="after")
    def _consistent(self) -> "QualityConfig":
        for name in self.metric_names:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1)
                raise ValueError(
                    f"metrics: {name!r} is none of {', '.join(METRICS)}"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
        if self.reference is None and self.metric_names != ("is",):
            raise ValueError("reference: needed by every metric but is; give an image set or stored statistics")
        extras = [name for name in ("per_class", "bootstrap", "infinite") if getattr(self, name)]
        if extras and "fid" not in self.metric_names:
            raise ValueError(f"{extras[0]}: is of the Frechet distance; add fid to --metrics")
        if self.bootstrap == 1:
            raise ValueError("bootstrap: 1 resample has no spread; give 100 or more")
        return self


@dataclass(frozen=True, config=STRICT)
class StatisticsConfig:
    images: Path = Field(description="image set, of any kind")
    out: Path = Field(description=".npz to write: mu, sigma, n and what they are statistics of")
    features: str = Field("inception", description=_FEATURES)
    protocol: Protocol | None = Field(None, description=_PROTOCOL)
    weights: str | None = Field(None, description=_WEIGHTS)
    cache: str = Field("auto", description=_CACHE)
    batch_size: AtLeastOne = Field(50, description="images at a time; the result does not depend on it")
    device: str = Field("auto", description=_DEVICE)
