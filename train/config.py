"""What a training run is: every field of a recipe, with its range."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.architectures import ACTIVATIONS
from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.classifier import NORMALIZERS
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.errors import none_of
from robust_models.images.image_set import OnError
from robust_models.runtime.config import STRICT, DeviceFlags, Number, several
from robust_models.runtime.device import PRECISION, PrecisionChoice
from robust_models.threat import NORMS, NormName, check_ball

Fraction = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1)]
ObjectiveName = Literal["cross_entropy", "trades", "energy"]
T = TypeVar("T", int, float)
_READ_WITH = ("arch", "activation", "normalize")  # of a fresh network, or how init is read


def _names(value: Any) -> Any:
    return value if value == "cifar10" else several(value)


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which images train, how they are read, and which are held out."""

    path: str = Field(
        default="cifar10",
        description="cifar10, cifar100, imagenet:DIR, restricted_imagenet:DIR, cinic10:DIR, a .beton, an .npz or a "
        "folder of class subfolders",
    )
    image_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="side in pixels that all images get (null: the source's own)"
    )
    loader: Literal["auto", "resident", "stream", "ffcv"] = Field(
        default="auto", description="auto: ffcv for a .beton; resident (all on the device) for what is in memory"
    )
    workers: Count | None = Field(default=None, description="of stream (processes) and ffcv (threads); null: per core")
    random_crop: bool = Field(default=False, description="stream, ffcv: cut a random box from each image and resize it")
    on_error: OnError = Field(
        default="fail", description="an unreadable image: fail, or skip (named; the next image takes its place)"
    )
    class_names: Annotated[tuple[str, ...] | Literal["cifar10"], BeforeValidator(_names)] = Field(
        default=(), description="names for an .npz that has none, with commas, or cifar10 for those of CIFAR-10"
    )
    validation: Count = Field(default=1000, description="last images of the train split, held out to select the model")
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="train on the first so many of the others only (null: all)"
    )
    generated: Path | None = Field(
        default=None,
        description="a labelled image set of a generator's samples, which take their share of every batch (null: none)",
    )
    generated_share: Annotated[Number, Field(gt=0, lt=1)] = Field(
        default=0.7, description="of each batch; the held-out images stay real"
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The class names; empty where the source has its own."""
        return CIFAR10_CLASSES if self.class_names == "cifar10" else self.class_names


@dataclass(frozen=True, config=STRICT)
class AugmentConfig:
    """How images vary from epoch to epoch."""

    crop_padding: Count = Field(default=4, description="pixels of zero padding before the random crop")
    flip: bool = Field(default=True, description="mirror half of the images")
    jitter: Fraction = Field(default=0.0, description="brightness, contrast and saturation each vary by this factor")
    rotation: NonNegative = Field(default=0.0, description="degrees to either side")
    mix: Literal["none", "cutmix", "mixup"] = Field(default="none", description="mixes images and their labels")
    mix_share: Fraction = Field(default=1.0, description="share of the images that are mixed")


@dataclass(frozen=True, config=STRICT)
class RealAugmentConfig(AugmentConfig):
    """How the real images vary that are to be told from made ones: in nothing by which they could be told."""

    crop_padding: Count = Field(default=0, description="0: black margins would give real images away")

    @model_validator(mode="after")
    def _leaves_no_margins(self) -> "RealAugmentConfig":
        for name in ("crop_padding", "rotation"):
            if value := getattr(self, name):
                raise ValueError(
                    f"{name}: {value:g} leaves black margins, by which real images are told from made ones; set it to 0"
                )
        if self.mix != "none":
            raise ValueError(f"mix: {self.mix} makes images that are not real; leave it out")
        return self


@dataclass(frozen=True, config=STRICT)
class SmoothingConfig:
    """Gaussian noise on every image, for classifiers that randomized smoothing is to certify."""

    sigma: NonNegative = Field(
        default=0.0, description="standard deviation of the noise, pixels in [0,1]; 0 trains without"
    )
    draws: Annotated[int, Field(ge=1)] = Field(
        default=1, description="of the noise for each image, whose mean probabilities are trained and attacked"
    )


@dataclass(frozen=True, config=STRICT)
class AttackConfig:
    """The attack that training withstands: its ball and its steps."""

    norm: NormName = Field(default="l2", description=f"geometry of the ball: {', '.join(NORMS)}")
    eps: NonNegative | dict[Fraction, NonNegative] = Field(
        default=0.5, description="radius, pixels in [0,1]; or {progress: radius}; 0 trains without attack"
    )
    step_size: Positive | dict[Fraction, Positive] = Field(
        default=0.1,
        description="length of a PGD step, pixels in [0,1]; or {progress: length} from there on",
    )
    steps: Count | dict[Fraction, Count] = Field(default=7, description="PGD steps; or {progress: steps}")
    random_start: bool = Field(default=False, description="start anywhere in the ball instead of at the image")
    fold: bool | None = Field(
        default=None,
        description="attack a copy whose batch norms are folded into its convolutions (null: on a CPU, uncompiled)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "AttackConfig":
        for name, value in (("eps", self.eps), ("step_size", self.step_size), ("steps", self.steps)):
            check_start(name, value)
        for eps in _values(self.eps):
            check_ball(self.norm, eps)
            if math.isinf(eps):
                raise ValueError(f"norm: {self.norm} has no radius to train for; choose a ball")
        for length in _values(self.step_size):
            if length > NORMS[self.norm].eps_max:
                raise ValueError(
                    f"step_size: {length:g} is more than the widest ball of norm={self.norm} (pixels are in [0,1]); "
                    f"did you mean {length:g}/255 = {length / 255:.4f}?"
                )
        return self

    @property
    def radius(self) -> float:
        """eps at the end of the run: what the classifier is to withstand, and is selected by."""
        return self.eps_at(1.0)

    def eps_at(self, progress: float) -> float:
        """The radius at the finished share `progress` of the run, pixels in [0,1]."""
        return at(self.eps, progress)

    def steps_at(self, progress: float) -> int:
        """The number of PGD steps at the finished share `progress` of the run."""
        return at(self.steps, progress)

    def step_size_at(self, progress: float) -> float:
        """The length of a PGD step at the finished share `progress` of the run, pixels in [0,1]."""
        return at(self.step_size, progress)


def at(value: T | dict[float, T], progress: float) -> T:
    """A constant, or the entry of {start: value} with the last start not after progress."""
    if not isinstance(value, dict):
        return value
    return value[max(start for start in value if start <= progress)]


def check_start(name: str, value: Any) -> None:
    """ValueError for a {start: value} that leaves the start of the run open."""
    if isinstance(value, dict) and 0 not in value:
        raise ValueError(f"{name}: {value} does not say what holds from progress 0 on")


def _values(value: float | dict[float, float]) -> Iterable[float]:
    return value.values() if isinstance(value, dict) else (value,)


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    """What a step minimises."""

    name: ObjectiveName = Field(default="cross_entropy", description="what a step minimises")
    beta: NonNegative = Field(default=6.0, description="name=trades: weight of the divergence between x and x_adv")
    awp: NonNegative = Field(
        default=0.0, description="adversarial weight perturbation, relative to the weights (0.005 is usual; 0: none)"
    )


@dataclass(frozen=True, config=STRICT)
class EnergyConfig:
    """objective.name=energy: a robust classifier learns to generate, from images that it makes."""

    start: str = Field(
        default="seeds",
        description="where made images begin: seeds (of the classes), pca (along their principal directions), noise, "
        "or any image set",
    )
    step_size: Positive = Field(default=0.5, description="L2 length of a step up the class logit, pixels in [0,1]")
    first_steps: Count = Field(default=1, description="steps of the first climbs")
    most_steps: Annotated[int, Field(ge=1)] | dict[Fraction, Annotated[int, Field(ge=1)]] = Field(
        default=12, description="climbs grow no longer; or {progress: steps} from there on"
    )
    auc: Fraction | dict[Fraction, Fraction] = Field(
        default=0.8,
        description="climbs grow by a step when real images are told from made ones this well; or {progress: auc}",
    )
    window: Annotated[int, Field(ge=1)] = Field(default=8, description="steps over which that is averaged")
    weight: NonNegative | dict[Fraction, NonNegative] = Field(
        default=0.5, description="of the binary losses beside the cross-entropy; or {progress: weight} from there on"
    )
    augment: RealAugmentConfig = Field(default_factory=RealAugmentConfig)
    judge: str = Field(
        default="classifier:cifar10-standard-small",
        description="feature space in which made images are compared with held-out ones (as eval quality --features)",
    )
    images: Annotated[int, Field(ge=2)] = Field(
        default=500, description="held-out images to compare with, and made ones"
    )
    floor: Fraction = Field(default=0.0, description="least robust accuracy of the classifier that is kept")

    @model_validator(mode="after")
    def _consistent(self) -> "EnergyConfig":
        for name in ("weight", "auc", "most_steps"):
            check_start(name, getattr(self, name))
        return self


@dataclass(frozen=True, config=STRICT)
class GuardConfig:
    """The watch for catastrophic overfitting: training attacks that fool nobody else."""

    every_steps: Count = Field(
        default=0, description="compare the training attack with PGD on held-out images every so often; 0: never"
    )
    gap: Fraction = Field(
        default=0.2, description="a larger gap in accuracy is catastrophic overfitting: the attack's steps double"
    )
    images: Annotated[int, Field(ge=1)] = Field(default=256, description="held-out images to compare on")


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """SGD, and its learning rate over the run."""

    lr: Positive = Field(default=0.1, description="peak learning rate of SGD at this batch size")
    momentum: Fraction = Field(default=0.9, description="share of the last step that goes into the next")
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum")
    weight_decay: NonNegative = Field(default=5e-4, description="on every parameter")
    schedule: Literal["step", "cosine", "one_cycle", "constant"] = Field(default="step", description="lr over the run")
    step_epochs: Annotated[int, Field(ge=1)] = Field(
        default=50, description="schedule=step: lr / 10 every so many epochs"
    )
    warmup: Fraction = Field(
        default=0.2, description="schedule=one_cycle: share of the run in which lr rises, then a cosine"
    )


@dataclass(frozen=True, config=STRICT)
class RefinementConfig:
    """What the classifier is worth as a refiner, at each evaluation: the best is kept as refiner.safetensors."""

    images: str | None = Field(
        default=None,
        description="a labelled image set of a generator, refined and compared with held-out images (null: none)",
    )
    limit: Annotated[int, Field(ge=2)] = Field(default=500, description="its first so many images, and held-out ones")
    eps: Positive = Field(default=3.0, description="L2 radius of the refinement, pixels in [0,1]")
    steps: Annotated[int, Field(ge=1)] = Field(default=7, description="of it, each 1.5 * eps / steps long")
    judge: str = Field(
        default="efficientnet-lite0-128",
        description="feature space in which they are compared (as eval quality --features)",
    )


@dataclass(frozen=True, config=STRICT)
class ValidationConfig:
    """How the best epoch is found, on held-out images."""

    every_epochs: Annotated[int, Field(ge=1)] = Field(default=1, description="epochs between evaluations")
    steps: Annotated[int, Field(ge=1)] = Field(
        default=10, description="PGD steps of length 2.5 * eps / steps, random start"
    )
    stop_after: Count = Field(
        default=0, description="end the run after so many evaluations without a better one; 0: never"
    )
    show: Count = Field(default=8, description="held-out images drawn attacked in TensorBoard at each evaluation")
    refine: RefinementConfig = Field(default_factory=RefinementConfig)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MachineFlags(DeviceFlags):
    """Machine: where the work runs, and how exactly."""

    precision: PrecisionChoice = Field(default="auto", description=PRECISION)
    compile: bool | None = Field(
        default=None,
        description="torch.compile the network (null: on CUDA, in runs that are long enough)",
    )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TrainConfig(MachineFlags):
    """Run: the network, how long it trains, and what is written."""

    out: Path = Field(description="run folder; the same command run again continues there")
    arch: str | None = Field(
        default=None, description="a name of robust_models.architectures (null: resnet50, or the one of init)"
    )
    activation: str | None = Field(default=None, description=f"{', '.join(ACTIVATIONS)} (null: relu, or init's)")
    normalize: str | None = Field(
        default=None,
        description=f"normaliser inside the classifier: {', '.join(NORMALIZERS)} (null: cifar10, or init's)",
    )
    init: str | None = Field(
        default=None, description="start from these weights: an embedded or published name, or anyone's checkpoint file"
    )
    new_head: bool = Field(default=False, description="replace the last linear layer of init by a fresh one")
    epochs: Annotated[int, Field(ge=1)] = Field(default=150, description="passes over the training images")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=128, description="images in a step, over all ranks")
    label_smoothing: Fraction = Field(default=0.0, description="probability that is spread over all classes")
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.0, description="decay per step of averaged weights, which are kept then; 0: none"
    )
    resize: Side | dict[Fraction, Side] | None = Field(
        default=None,
        description="train on images of this side, pixels, and shrink the attack with them; or {progress: side} from "
        "there on (null: as they are)",
    )
    noised: bool = Field(
        default=False,
        description="train on images under the noise of every step of a diffusion, which the network is told: a "
        "classifier that guides samplers by their noisy images; noised_ARCH",
    )
    seed: Count = Field(default=0, description="of all that is drawn: the first weights, order, augmentation, attacks")
    save_minutes: NonNegative = Field(
        default=10.0, description="save the state so often between evaluations, after each of which it is saved too"
    )
    log_every: Annotated[int, Field(ge=1)] = Field(default=20, description="steps between rows of metrics")
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    smoothing: SmoothingConfig = Field(default_factory=SmoothingConfig)
    attack: AttackConfig = Field(default_factory=AttackConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    energy: EnergyConfig = Field(default_factory=EnergyConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    validate: ValidationConfig = Field(default_factory=ValidationConfig)
    init_reading: CheckpointFlags = Field(default_factory=CheckpointFlags)

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.normalize is not None and self.normalize not in NORMALIZERS:
            raise ValueError(f"normalize: {none_of(self.normalize, NORMALIZERS)}")
        if self.init is None and self.init_reading != CheckpointFlags():
            raise ValueError("init_reading: has nothing to read without --init CHECKPOINT")
        if self.init_reading.smoothing is not None:
            raise ValueError("init_reading.smoothing: init's weights are trained on; give --smoothing.sigma for noise")
        if self.init_reading.views is not None:
            raise ValueError("init_reading.views: init's weights are trained on, each image as --augment makes it")
        if self.data.generated is None and self.data.generated_share != DataConfig().generated_share:
            raise ValueError(
                f"data.generated_share: {self.data.generated_share:g} is for --data.generated, which is not given"
            )
        for name in _READ_WITH:
            own, read = getattr(self, name), getattr(self.init_reading, name)
            if None not in (own, read) and own != read:
                raise ValueError(f"{name}: {own}, but init_reading.{name} is {read}; init is trained on as it is read")
        check_start("resize", self.resize)
        if self.resize is not None and (self.smoothing.sigma or self.noised):
            raise ValueError("resize: does not go with noise, which would not shrink with the images; leave one out")
        if self.new_head and self.init is None:
            raise ValueError("new_head: has nothing to replace without --init CHECKPOINT")
        if self.objective.name == "energy":
            self._check_energy()
        if self.noised and (self.smoothing.sigma or self.compile):
            name = "smoothing.sigma" if self.smoothing.sigma else "compile"
            raise ValueError(f"{name}: does not go with noised, whose noise differs from image to image; leave it out")
        for name, every in (
            ("guard.every_steps", self.guard.every_steps),
            ("validate.stop_after", self.validate.stop_after),
            ("validate.refine.images", self.validate.refine.images),
        ):
            if every and not self.data.validation:
                raise ValueError(f"{name}: needs held-out images; set data.validation above 0")
        return self

    def _check_energy(self) -> None:
        if self.init is None or self.new_head:
            raise ValueError("objective.name: energy goes on from a robust classifier; give --init CHECKPOINT")
        for name, value in (
            ("objective.awp", self.objective.awp),
            ("smoothing.sigma", self.smoothing.sigma),
            ("noised", self.noised),
            ("resize", self.resize),
            ("data.generated", self.data.generated),  # it makes its own, and calls those of the data real
        ):
            if value:
                raise ValueError(f"{name}: does not go with objective.name=energy; leave it out")
        if self.attack.radius == 0:
            raise ValueError("attack.eps: 0, but objective.name=energy keeps a classifier robust; give its radius")
        first, most = self.energy.first_steps, at(self.energy.most_steps, 0)
        if first > most:
            raise ValueError(f"energy.first_steps: {first} is more than energy.most_steps {most}")
        if self.data.validation < 2:
            raise ValueError("data.validation: energy compares made images with held-out ones; hold out 2 or more")

    @property
    def reading(self) -> CheckpointFlags:
        """How init is read: init_reading with, where that leaves them open, arch, activation and normalize."""
        own = {name: getattr(self, name) for name in _READ_WITH if getattr(self.init_reading, name) is None}
        return replace(self.init_reading, **own)
