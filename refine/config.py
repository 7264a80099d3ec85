"""What a refinement is: every flag of `bigroc refine`, with its range."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from refine.balance import check_prior
from refine.flags import IMAGES, ClassifierFlags, MachineFlags, PictureFlags, ReadingFlags
from refine.generators.generator_flags import DEFAULTS, GeneratorFlags, check_generator
from refine.method import AGAINST_WEIGHT, LOSSES, STEPS, LossName
from refine.stopping import MEDIAN, STOPS, open_real
from refine.targets import check_targets, mode_of
from robust_models.attacks import Center, Keep
from robust_models.checkpoints.flags import file_of, split_checkpoints
from robust_models.classifier import Precision
from robust_models.images import ImageGroups
from robust_models.images.image_set import SaveAs
from robust_models.images.open import fingerprint
from robust_models.runtime.config import STRICT, AtLeastOne, Number, as_plain
from robust_models.runtime.files import located, sha256_of
from robust_models.threat import NORMS, NormName, check_ball, check_step_size

GUESSES = ("pseudo", "debiased", "balanced")  # targets that come from the classifier itself
# Without effect, or given below in other words. On a GPU batch_size moves the last float32 bits, but a run that was out
# of memory must be able to go on with a smaller one.
WITHOUT_EFFECT = {
    "ckpt", "input", "out", "targets", "reference", "judge", "auto_images", "auto_accept", "batch_size", "device",
    "precision", "overwrite", "grid", "grid_images", "trajectory", "trajectory_images", "changes",
}  # fmt: skip
AUTO_NORMS = ("l2", "linf")  # those for which --eps auto knows which eps to try


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MethodFlags:
    """Method: the ball around each image, the steps inside it, and what they lower."""

    eps: Annotated[Number, Field(ge=0)] | Literal["auto"] = Field(
        description="radius, pixels in [0,1]; weak generators want 5, strong ones 1; auto: by --reference and --judge"
    )
    norm: NormName = Field(default="l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    loss: LossName = Field(default="ce", description=f"what the steps lower: {', '.join(LOSSES)}")
    steps: AtLeastOne | Literal["auto"] = Field(
        default=STEPS,
        description=f"PGD steps; auto: the fewest that keep the gain of {STEPS}, by --reference and --judge",
    )
    step_size: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="length of a step, pixels in [0,1] (null: 1.5 * eps / steps)"
    )
    stop_energy: Number | str | None = Field(
        default=None,
        description="an image whose energy (-logsumexp of the logits) is this or less takes no further step: a number, "
        "median (of real images, as a classifier trained to generate records it), or real images, whose median is "
        "taken (null: all take all steps)",
    )
    stop_confidence: Number | str | None = Field(
        default=None,
        description="nor does one that has this probability of its target, or more: a number, or real images, of whose "
        "most probable class it is the median (null: all take all steps)",
    )
    stop_distance: str | None = Field(
        default=None,
        description="nor does one whose features lie as near the mean of its class as, in the median, those of these "
        "real images do (null: all take all steps)",
    )
    against: str | None = Field(
        default=None,
        description="a weaker classifier of the same classes, whose loss the steps raise: they go where only the "
        "stronger one wants to (null: none)",
    )
    against_weight: Annotated[Number, Field(gt=0)] = Field(
        default=AGAINST_WEIGHT, description="how much that counts beside the loss of --ckpt"
    )
    center: Center = Field(
        default="input", description="the ball's centre; first_step is that of the paper's notebooks"
    )
    keep: Keep = Field(default="last", description="which iterate is the result")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TargetFlags:
    """Targets: the class that each image moves towards."""

    targets: str | None = Field(
        default=None,
        description="given (the set's labels), pseudo, debiased or balanced (the classifier's guesses), class:NAME, or "
        "a .csv or .json file of labels (null: the --prompt; given where there are labels, else pseudo)",
    )
    prior: str | None = Field(
        default=None, description="a .csv or .json of class weights that --targets balanced follows; null: uniform"
    )
    uncertain: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.0, description="images whose most probable class has less than this probability are left alone"
    )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AutoFlags:
    """Search for eps and steps: what --eps auto and --steps auto compare with."""

    reference: Path | None = Field(default=None, description="real images, which auto compares with")
    judge: str | None = Field(
        default=None,
        description="feature spaces in which auto compares, with commas (the first chooses, all judge), or a "
        "classifier that does not refine (null: inception-768 and efficientnet-lite0-128, as far as they are at hand)",
    )
    auto_images: Annotated[int, Field(ge=2)] = Field(
        default=1000, description="how many images auto tries its values on; as many others judge its choice"
    )
    auto_accept: Literal["significant", "best"] = Field(
        default="significant",
        description="significant: where the others do not confirm a gain, images are left as they are, and where "
        f"they do not confirm that fewer steps keep it, {STEPS} are taken; best: what was chosen, anyway",
    )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SourceFlags(ReadingFlags):
    """Input: which images to begin with."""

    input: Path | None = Field(default=None, description=f"images: {IMAGES} (null: those of --generator)")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OutputFlags:
    """Output: where the refined set goes, and how it is kept."""

    out: Path = Field(description="where the refined set goes, of the same kind as the input")
    save_as: SaveAs = Field(
        default="source",
        description="the files of a refined folder: source: each in its own format, JPEG with quality 95, which has "
        "losses; png: all without loss",
    )
    shard_size: AtLeastOne = Field(default=4096, description="images per shard, the unit that a resumed run keeps")
    overwrite: bool = Field(
        default=False, description="replace what stands at --out, and another run's unfinished work"
    )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RefineConfig(
    MethodFlags,
    TargetFlags,
    AutoFlags,
    SourceFlags,
    GeneratorFlags,
    OutputFlags,
    PictureFlags,
    MachineFlags,
    ClassifierFlags,
):
    """A refinement of one image set, or of a generator's samples, with one or several classifiers."""

    ckpt: str = Field(
        description="an embedded classifier's name or a checkpoint file, anyone's; several: with commas; what a file "
        "does not state may follow its name: FILE,normalize=cifar10"
    )

    @property
    def ckpts(self) -> list[str]:
        """The classifiers one by one, each with the settings behind its name."""
        return split_checkpoints(self.ckpt)

    @property
    def auto_fields(self) -> list[str]:
        """Which of eps and steps are to be found by comparing."""
        return [name for name in ("eps", "steps") if getattr(self, name) == "auto"]

    @model_validator(mode="after")
    def _consistent(self) -> "RefineConfig":
        self._check_source()
        if isinstance(self.stop_energy, float) and not math.isfinite(self.stop_energy):
            raise ValueError(f"stop_energy: {self.stop_energy} is no energy; give a finite number, or leave it out")
        if isinstance(self.stop_confidence, float | int) and not 0 < self.stop_confidence <= 1:
            raise ValueError(f"stop_confidence: {self.stop_confidence} is no probability above 0")
        self._check_against()
        if self.eps == "auto":
            if self.norm not in AUTO_NORMS:
                raise ValueError(
                    f"eps: auto knows where to begin for {', '.join(AUTO_NORMS)}; give a number for norm={self.norm}"
                )
        else:
            check_ball(self.norm, self.eps)
            check_step_size(self.norm, self.eps, self.step_size)
        if self.steps == "auto" and self.step_size is not None:
            raise ValueError(
                f"step_size: {self.step_size:g}, but each number of --steps auto has its own; leave it out"
            )
        if self.auto_fields and self.reference is None:
            raise ValueError(f"{self.auto_fields[0]}: auto needs --reference REAL_IMAGES")
        check_targets(self.targets, GUESSES)
        if self.prior is not None and self.targets != "balanced":
            raise ValueError(f"prior: {self.prior!r} is for --targets balanced; this run's targets are {self.targets}")
        if self.prior is not None:
            check_prior(self.prior)
        return self

    def _check_against(self) -> None:
        if self.against is None:
            if self.against_weight != AGAINST_WEIGHT:
                raise ValueError(f"against_weight: {self.against_weight:g} is for --against, which is not given")
        elif self.against in self.ckpts:
            raise ValueError(f"against: {self.against} is what refines; name a weaker classifier")
        elif self.keep == "best":
            raise ValueError("keep: best compares losses of one classifier, and --against names another; keep the last")

    def _check_source(self) -> None:
        """UserError unless either images or a generator are given, and flags of the latter with it only."""
        if self.generator is None:
            if self.input is None:
                raise ValueError("input: is required, or --generator, whose images are refined as they are sampled")
            for name, default in DEFAULTS.items():
                if getattr(self, name) != default:
                    raise ValueError(f"{name}: {getattr(self, name)} is for --generator, which is not given")
            return
        for name in ("input", "limit"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{name}: {value}, but --generator makes the images (--num-images); leave one out")
        check_generator(self)


def deciding(config: RefineConfig, images: ImageGroups, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Every setting that decides the images, JSON-ready, with what the files it names hold."""
    plain = {name: value for name, value in as_plain(config).items() if name not in WITHOUT_EFFECT}
    for i, name in enumerate(config.ckpts):
        plain["ckpt" if i == 0 else f"ckpt {i + 1}"] = f"{name} (sha256 {sha256_of(file_of(name))[:16]})"
    if config.against is not None:
        plain["against"] = f"{config.against} (sha256 {sha256_of(file_of(config.against))[:16]})"
    if config.input is not None:
        plain = {name: value for name, value in plain.items() if name not in DEFAULTS}
        plain |= {"input": str(located(config.input).resolve()), "input files": fingerprint(config.input)}
    plain |= {
        "input images": ", ".join(f"{len(part)} of {part.size[1]}x{part.size[0]} {part.depth}" for part in images.sets),
        "targets": mode_of(config.targets, config.prompt, images.labels),
        "device": device.type,
        "precision": precision,
    }
    for field in ("stop_confidence", "stop_distance"):
        if getattr(config, field) is None:
            del plain[field]
    for field in STOPS:
        level = getattr(config, field)
        if isinstance(level, str) and (field, level) != ("stop_energy", MEDIAN):
            plain[f"{field} files"] = fingerprint(open_real(level, field).path)
    for name, text in (("targets", config.targets), ("prior", config.prior)):
        if text is not None and Path(text).is_file():
            plain[f"{name} file"] = sha256_of(Path(text))[:16]
    if config.auto_fields and config.reference is not None:
        plain |= {
            "reference": str(located(config.reference).resolve()),
            "reference files": fingerprint(config.reference),
        }
        plain |= {"judge": config.judge, "auto_images": config.auto_images, "auto_accept": config.auto_accept}
    return plain
