"""What `bigroc eval quality` and `bigroc eval statistics` take: every field, with its range."""

from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eval.quality.metric import MetricName, Options
from eval.quality.metrics import ALL, METRICS, check_options
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags

_FEATURES = (
    "one or several, with commas: inception (2048-d, the FID's), inception-768, -192 or -64, efficientnet-lite0-128 or "
    "-lite1-128 (ImageNet; no judge of ImageNet classifiers' work), dinov2 or clip (:FILE after either), "
    "classifier:NAME_OR_FILE"
)
_WEIGHTS = "file or URL of the Inception network (null: the copy in torch's hub cache, else a download)"
_PROTOCOL = "how pixels reach Inception: pytorch-fid, tf (torch-fidelity), clean or adm (null: pytorch-fid)"
_CACHE = "folder where features and statistics are kept; auto: the user's cache, none: nowhere"
Protocol = Literal["pytorch-fid", "tf", "clean", "adm"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FeatureFlags:
    """Features: the network in whose features images are compared, and where they are kept."""

    features: str = Field("inception", description=_FEATURES)
    protocol: Protocol | None = Field(None, description=_PROTOCOL)
    weights: str | None = Field(None, description=_WEIGHTS)
    cache: str = Field("auto", description=_CACHE)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MachineFlags(DeviceFlags):
    """Machine: where the work runs, and how much of it at once."""

    batch_size: AtLeastOne = Field(50, description="images at a time; the result does not depend on it")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class QualityConfig(FeatureFlags, MachineFlags):
    """Scores: of which images, which scores, with which intervals."""

    images: Path = Field(description="image set to judge, of any kind; or an .npz of stored statistics")
    reference: Path | None = Field(
        None, description="image set to compare with, likewise; the Inception Score has none"
    )
    metrics: str = Field(
        "fid",
        description=f"with commas: {', '.join(METRICS)}; fid is the Frechet distance; all: the whole sheet, as far as "
        "it can be had",
    )
    judge_classifier: str | None = Field(
        None, description="a classifier that did not refine, for metric labels: an embedded name or a checkpoint file"
    )
    originals: Path | None = Field(
        None, description="the images before they were refined, for metric moved; of the same names"
    )
    nearest_picture: Path | None = Field(
        None, description="a picture of the images that most resemble one of the reference, for metric nearest"
    )
    explain: bool = Field(
        False, description="also what each metric rewards, what fools it, and from which N it means something"
    )
    per_class: bool = Field(False, description="also the Frechet distance of each class; both sets need labels")
    intervals: Annotated[int, Field(ge=0)] = Field(0, description="half splits of the images for 95 % intervals (200)")
    infinite: bool = Field(False, description="also the Frechet distance extrapolated to infinitely many images")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of --intervals and --infinite")

    @property
    def metric_names(self) -> tuple[MetricName, ...]:
        """Each metric once, in the order given."""
        names = METRICS if self.metrics.strip() == ALL else (name.strip() for name in self.metrics.split(","))
        return cast(tuple[MetricName, ...], tuple(dict.fromkeys(names)))

    @property
    def options(self) -> Options:
        """What is asked for besides the features; the originals are not opened yet."""
        return Options(
            self.metric_names,
            self.per_class,
            self.intervals,
            self.infinite,
            self.seed,
            whole_sheet=self.metrics.strip() == ALL,
            judge_classifier=self.judge_classifier,
            nearest_picture=self.nearest_picture,
        )

    @model_validator(mode="after")
    def _consistent(self) -> "QualityConfig":
        check_options(
            self.options, with_reference=self.reference is not None, with_originals=self.originals is not None
        )
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class StatisticsConfig(FeatureFlags, MachineFlags):
    """Statistics: of which images, and where they go."""

    images: Path = Field(description="image set, of any kind")
    out: Path = Field(description=".npz to write: mu, sigma, n and what they are statistics of")
