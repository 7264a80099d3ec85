"""What a metric of image sets is: what it needs of the two sets, its numbers, and their lines in the summary."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from robust_models.features import FeatureExtractor
from robust_models.images import ImageSet
from robust_models.metrics import Moments, ScoreStatistics

MetricName = Literal[
    "fid", "is", "kid", "prc", "density-coverage", "vendi", "within-class", "nearest", "sfid", "fd-dinov2", "cmmd",
    "labels", "moved"
]  # fmt: skip
Part = Literal["frechet", "spatial", "score", "rows"]  # what a pass over a set can bring; see Side
Summary = Mapping[str, Any]
JUDGE = "--judge-classifier"  # the feature space of metrics that an uninvolved classifier gives


@dataclass(frozen=True)
class Side:
    """One of the two sets, as far as the metrics asked for need it."""

    frechet: Moments | None = None  # of the features
    spatial: Moments | None = None  # of the sFID's features
    score: ScoreStatistics | None = None  # of the network's class probabilities
    rows: Tensor | None = None  # features [N,D] float32
    labels: np.ndarray | None = None  # int64 [N]
    class_names: tuple[str, ...] | None = None
    pixels: ImageSet | None = None  # the images themselves


@dataclass(frozen=True)
class Options:
    """What is asked for besides the features."""

    metrics: tuple[MetricName, ...] = ("fid",)
    per_class: bool = False  # also the Frechet distance of each class
    intervals: int = 0  # half splits that the 95 % intervals come from; 0: no intervals
    infinite: bool = False  # also the Frechet distance extrapolated to infinitely many images
    seed: int = 0
    whole_sheet: bool = False  # what cannot be had is left out, and said
    judge_classifier: str | None = None  # that took no part; metric "labels"
    originals: ImageSet | None = None  # the images before they were refined; metric "moved"
    nearest_picture: Path | None = None  # where metric "nearest" draws the closest pairs


class Metric(ABC):
    """One metric of a set of images, or of two."""

    name: ClassVar[MetricName]  # as --metrics has it
    needs: ClassVar[Collection[Part]]  # of the images
    reference_needs: ClassVar[Collection[Part]]  # of the reference; () where it takes none
    own_features: ClassVar[str | None] = None  # the space it is defined in, or JUDGE; None: those of --features
    rewards: ClassVar[str] = ""  # in words: what makes it better
    fooled_by: ClassVar[str] = ""  # in words: what makes it better though the images are not
    least: ClassVar[int] = 0  # images from which it means something
    least_per_feature: ClassVar[int] = 0  # the same for each feature
    has_intervals: ClassVar[bool] = True  # with --intervals

    @abstractmethod
    def compute(self, images: Side, reference: Side, features: FeatureExtractor, options: Options) -> dict[str, Any]:
        """The numbers, flat and JSON-ready. UserError where there are too few images."""

    @abstractmethod
    def lines(self, summary: Summary) -> list[str]:
        """The numbers in words, each with what it depends on."""
