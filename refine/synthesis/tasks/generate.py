"""generate: images of given classes, from seeds drawn at low resolution.

The paper draws a seed from one Gaussian per class, and suggests a mixture of Gaussians as the next step: both are here.
A classifier that was trained to generate (train/energy.py) says how many steps suit it, and how long ones.
"""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from refine.method import LOSSES, LossName
from refine.network import Network
from refine.synthesis.config import Ball, SynthesisConfig, by_size
from refine.synthesis.loop import lowering
from refine.synthesis.samplers import NoisyMomentum
from refine.synthesis.task import Source, Task, Work
from robust_models.class_seeds import SUFFIX, ClassSeeds, open_start, seeds_of
from robust_models.classifier import Generation
from robust_models.images import to_u8
from robust_models.images.image_set import Numbered
from robust_models.labels import listed_classes
from robust_models.runtime.config import STRICT, ImageCount, Number
from robust_models.runtime.seeds import DRAW, generator

EXAMPLES = """\
  bigroc refine --task generate --ckpt cifar10-l2-small --num-images 100 --out samples.npz --grid samples.png
  bigroc refine --task generate --ckpt cifar10-l2-small --classes cat,dog --num-images 20 --out pets/
  bigroc refine --task generate --ckpt runs/energy/classifier.safetensors --num-images 100 --out samples.npz
  bigroc refine --task generate --ckpt cifar10-l2-small --sampler momentum --start-from pca --steps 20 --out samples.npz
  bigroc refine --task generate --ckpt CHECKPOINT.pt --seeds imagenet.seeds.npz --num-images 5000 --out samples.tar
Seeds for other classes: bigroc refine --task seeds --help
"""


class Usual(NamedTuple):
    """What a sampler takes unless told otherwise."""

    step_size: float
    steps: int
    noise: float


SamplerName = Literal["ascent", "momentum", "langevin"]
MOMENTUM = 0.8  # arXiv:2407.06315's
# Of those tried the nearest to real images with cifar10-l2-small (docs/synthesis.md). The 500 steps of 0.025 in
# arXiv:2407.06315's notebooks over-drive it.
SAMPLERS = {
    "momentum": Usual(0.1, 15, 0.001),
    "langevin": Usual(0.5, 10, 0.005),
}


def _noise_words() -> str:
    return ", ".join(f"{usual.noise:g} of {name}" for name, usual in SAMPLERS.items())


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GenerateConfig(SynthesisConfig):
    """How many images of which classes, from where, and how."""

    num_images: ImageCount = Field(default=64, description="how many, as evenly over the classes as can be")
    classes: str | None = Field(
        default=None, description="their names or indices, with commas (null: the --prompt, else all)"
    )
    start_from: str | None = Field(
        default=None,
        description="where to begin: seeds (low-resolution draws of the class), pca (near its mean, along its "
        "principal directions), noise, or any image set (null: as a classifier trained to generate did, else seeds)",
    )
    seeds: Path | None = Field(
        default=None,
        description=f"what --task seeds wrote (null: NAME{SUFFIX} beside the checkpoint, else the embedded CIFAR-10's)",
    )
    mixture: bool = Field(
        default=True, description="false: one Gaussian per class, of the mixture's mean and covariance"
    )
    objective: LossName | None = Field(
        default=None,
        description=f"what the steps lower: {', '.join(LOSSES)} (null: ce; logit for a classifier trained to generate "
        "and for momentum and langevin)",
    )
    sampler: SamplerName = Field(
        default="ascent",
        description="how: ascent (steps of one length), momentum (arXiv:2407.06315) or langevin; the latter two scale "
        "the gradient by --step-size",
    )
    momentum: Annotated[Number, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description=f"--sampler momentum: share of the last step that goes into the next (null: {MOMENTUM:g})",
    )
    noise: Annotated[Number, Field(ge=0)] | None = Field(
        default=None,
        description="momentum, langevin: standard deviation of the noise of each step, pixels in [0,1] (null: "
        f"{_noise_words()})",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "GenerateConfig":
        if self.momentum is not None and self.sampler != "momentum":
            raise ValueError(f"momentum: {self.momentum:g} is for --sampler momentum; {self.sampler} has none")
        if self.noise is not None and self.sampler == "ascent":
            raise ValueError(f"noise: {self.noise:g} is for --sampler momentum or langevin; ascent adds none")
        if self.seeds is not None and self.start_from not in (None, "seeds", "pca"):
            raise ValueError(f"seeds: {self.seeds} is for --start-from seeds or pca; {self.start_from} needs none")
        return self


def open_source(config: GenerateConfig, network: Network) -> Source:
    """A start drawn for every image, and the way from there to its class."""
    recorded = network.model.description.generation
    start = open_start(_start_from(config, recorded), lambda: _seeds(config, network), network.image_size)
    classes = torch.tensor(listed_classes(config.classes, network.class_names, config.prompt))
    targets = classes.repeat(-(-config.num_images // len(classes)))[: config.num_images]
    objective = lowering(LOSSES[_objective(config, network)])

    def starts(rows: Tensor) -> Tensor:
        return start(targets[rows], [generator("cpu", config.seed, DRAW, i) for i in rows.tolist()])

    def work(rows: Tensor) -> Work:
        sampler = _sampler(config, tuple(rows.tolist()))
        return Work(network.here(starts(rows)), network.here(targets[rows]), objective, sampler=sampler)

    ball = usual_ball(config.sampler, recorded, max(start.size))
    return Source(targets, start.size, work, lambda rows: to_u8(starts(rows)), Numbered(len(targets)), ball=ball)


def usual_ball(sampler: SamplerName, recorded: Generation | None, side: int) -> Ball | None:
    """Steps as the sampler has them, or as the classifier's file records them; None where there is neither.

    Their ball is no bound: it reaches from any image of this side in pixels to any other.
    """
    across = 3**0.5 * side
    if sampler in SAMPLERS:
        return Ball(across, SAMPLERS[sampler].step_size, SAMPLERS[sampler].steps)
    return None if recorded is None else Ball(across, recorded.step_size, recorded.steps)


def _start_from(config: GenerateConfig, recorded: Generation | None) -> str:
    if config.start_from is not None:
        return config.start_from
    return "seeds" if recorded is None or recorded.start == "images" else recorded.start  # which images, it cannot know


def _objective(config: GenerateConfig, network: Network) -> LossName:
    if config.objective is not None:
        return config.objective
    trained_to = network.model.description.generation is not None
    return "logit" if trained_to or config.sampler in SAMPLERS else "ce"


def _sampler(config: GenerateConfig, rows: tuple[int, ...]) -> NoisyMomentum | None:
    if config.sampler not in SAMPLERS:
        return None
    noise = SAMPLERS[config.sampler].noise if config.noise is None else config.noise
    momentum = MOMENTUM if config.momentum is None else config.momentum
    return NoisyMomentum(momentum if config.sampler == "momentum" else 0.0, noise, config.seed, rows)


def _seeds(config: GenerateConfig, network: Network) -> ClassSeeds:
    of_texts = config.prompt is not None
    seeds = seeds_of(config.ckpt, network.class_names, given=config.seeds, of_texts=of_texts)
    return seeds if config.mixture else seeds.as_gaussians()


TASK = Task(
    name="generate",
    about="Make images of given classes.",
    schema=GenerateConfig,
    defaults=by_size(small=Ball(30, 0.5, 60), large=Ball(40, 1, 60)),
    open=open_source,
    examples=EXAMPLES,
)
