"""What a study has found: the contract between the cells that measure and the report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Axes:
    """One point of the grid. A raw cell, images as the generator made them, has no classifier and eps 0."""

    images: str  # a name of the study's image sets
    classifier: str | None = None  # a name of the study's classifiers
    norm: str = "l2"
    eps: float | Literal["auto"] = 0.0  # pixels in [0,1]
    steps: int = 0
    targets: str = "given"
    loss: str = "ce"
    seed: int = 0
    stop: str = "never"  # or at the median of the real images: median, of their energy, confidence or distance

    def settings(self, real: Path | None, judges: Sequence[str] = ()) -> dict[str, Any]:
        """As the flags of bigroc refine have them; real: the images of that median, and of the search for eps."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("norm", "eps", "steps", "targets", "loss")}
        if self.eps == "auto":
            found |= {"reference": real, "judge": ",".join(judges) or None}
        if self.stop == "never":
            return found
        field = {"median": "energy"}.get(self.stop, self.stop)
        return found | {f"stop_{field}": None if real is None else str(real)}

    @property
    def drawn(self) -> str:
        """What tables call the images: those that another seed draws are other ones."""
        return f"{self.images}, seed {self.seed}" if self.seed else self.images

    @property
    def is_raw(self) -> bool:
        """Whether the images stay as they came."""
        return self.classifier is None


@dataclass(frozen=True)
class Accuracy:
    """Share of the test images that are classified correctly under attack (eps 0: without), with a 95 % interval."""

    norm: str
    eps: float
    value: float
    interval: tuple[float, float]
    attack: str  # in words, "PGD-20, step 0.0625"; "" where there is none


@dataclass(frozen=True)
class Provenance:
    """Where a figure came from: enough to repeat it."""

    key: str  # sha256 of all that the figure depends on
    command: str  # repeats it
    config: dict[str, Any]
    inputs: dict[str, str]  # what was read -> sha256 ("checkpoint", "images", "data", "judge", "reference")
    versions: dict[str, str]
    machine: str
    wall_s: float


@dataclass(frozen=True)
class ClassifierResult:
    """One classifier of the study: what it is and what it withstands. `error` is the one line of a failed one."""

    name: str
    arch: str = ""
    num_parameters: int = 0
    image_size: int = 0
    class_names: tuple[str, ...] = ()
    threat_model: str = ""  # what it was trained to withstand: "l2 eps 0.5", "none"
    num_images: int = 0  # test images behind the accuracies
    accuracies: tuple[Accuracy, ...] = ()  # the clean one (eps 0) first, then by norm and eps
    panel: Path | None = None  # .npz: x_u8 [K,3,H,W], y [K], gradient [K,3,H,W] float32 (of the loss at x)
    provenance: Provenance | None = None
    error: str | None = None
    pending: bool = False  # nobody has trained or measured it yet; error says so


@dataclass(frozen=True)
class CellResult:
    """One cell: scores of the image set after refinement, or as it came (raw). `error` is the one line of a failed one.

    scores hold, where they could be measured: frechet, kid (where images are fewer than features), inception_score (of
    the judge's predictions), precision, recall, judge_agreement (share of images that the judge puts in their target
    class), target_agreement (share that the refining classifier does), distance (mean norm of the change, pixels in
    [0,1]), eps_taken (what auto found; 0: nothing that is surely a gain, and the images were left as they came).
    """

    axes: Axes
    num_images: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    # .npz: features [N,D] float32 of the judge, features_2 ... of the others, examples_u8 [K,3,H,W] (the set's first K)
    arrays: Path | None = None
    provenance: Provenance | None = None
    error: str | None = None

    @property
    def is_left(self) -> bool:
        """Whether auto found no sure gain, and left the images as they came."""
        return self.axes.eps == "auto" and self.eps == 0

    @property
    def eps(self) -> float:
        """The radius of the ball: that of the axes, or what auto found (NaN where the cell failed)."""
        return self.scores.get("eps_taken", math.nan) if self.axes.eps == "auto" else self.axes.eps


@dataclass(frozen=True)
class JudgedBy:
    """A judge, and what it compares with."""

    judge: str
    reference: Path
    reference_words: str
    real: Path | None = None


@dataclass(frozen=True)
class Results:
    """A whole study, as far as it got; `missing` counts cells that nobody has run yet."""

    title: str
    question: str
    vary: tuple[str, ...]  # the axes of interest, names of Axes' fields, the first one on the x axis
    judge: str  # "classifier:cifar10-standard-small"
    reference: Path  # stored Frechet statistics in the judge's features (robust_models.metrics.read_statistics)
    reference_words: str  # "50,000 images of ..., Frechet distance in the 128 features of ..."
    classifiers: tuple[ClassifierResult, ...]
    cells: tuple[CellResult, ...]  # raw ones first, then in the grid's order
    command: str
    missing: int = 0
    real: Path | None = None  # .npz: the judge's features [M,D] of real images, for KID
    others: tuple[JudgedBy, ...] = ()  # the other judges
    kin: tuple[str, ...] = ()  # classifiers of the same classes as the judge, where that is a classifier
    neighbours: dict[str, float] = field(
        default_factory=dict
    )  # by norm, median distance of a real image to the nearest
