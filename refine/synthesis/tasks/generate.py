"""generate: images of given classes, from seeds drawn at low resolution.

The paper draws a seed from one Gaussian per class, and suggests a mixture of Gaussians as the next step: both are here.
"""

from pathlib import Path

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from refine.network import Network
from refine.synthesis.config import Ball, SynthesisConfig, by_size
from refine.synthesis.loop import work_towards_class
from refine.synthesis.task import Source, Task, Work
from robust_models.class_seeds import SUFFIX, seeds_of
from robust_models.errors import UserError
from robust_models.images import to_u8
from robust_models.images.image_set import Numbered
from robust_models.labels import class_indices
from robust_models.runtime.config import STRICT, AtLeastOne
from robust_models.runtime.seeds import DRAW, generator

EXAMPLES = """\
  bigroc refine --task generate --ckpt cifar10-l2-small --num-images 100 --out samples.npz --grid samples.png
  bigroc refine --task generate --ckpt cifar10-l2-small --classes cat,dog --num-images 20 --out pets/
  bigroc refine --task generate --ckpt CHECKPOINT.pt --seeds imagenet.seeds.npz --num-images 5000 --out samples.tar
Seeds for other classes: bigroc refine --task seeds --help
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GenerateConfig(SynthesisConfig):
    """How many images of which classes, and from which seeds."""

    num_images: AtLeastOne = Field(default=64, description="how many, as evenly over the classes as can be")
    classes: str | None = Field(default=None, description="their names or indices, with commas (null: all)")
    seeds: Path | None = Field(
        default=None,
        description=f"what --task seeds wrote (null: NAME{SUFFIX} beside the checkpoint, else the embedded CIFAR-10's)",
    )
    mixture: bool = Field(
        default=True, description="false: one Gaussian per class, of the mixture's mean and covariance"
    )


def open_source(config: GenerateConfig, network: Network) -> Source:
    """Seeds drawn for every image, towards the class each was drawn for."""
    seeds = seeds_of(config.ckpt, network.class_names, given=config.seeds)
    seeds = seeds if config.mixture else seeds.as_gaussians()
    classes = _classes(config.classes, network.class_names)
    targets = classes.repeat(-(-config.num_images // len(classes)))[: config.num_images]

    def start(rows: Tensor) -> Tensor:
        drawn = [seeds.draw(int(targets[i]), generator("cpu", config.seed, DRAW, i)) for i in rows.tolist()]
        return torch.stack(drawn)

    def work(rows: Tensor) -> Work:
        return work_towards_class(config, network, start(rows), None, targets[rows])

    size = (seeds.image_size, seeds.image_size)
    return Source(targets, size, work, lambda rows: to_u8(start(rows)), Numbered(len(targets)))


def _classes(text: str | None, class_names: tuple[str, ...]) -> Tensor:
    """Class indices, int64, each once."""
    if text is None:
        return torch.arange(len(class_names))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"classes: {text!r} names none; give names or indices with commas")
    return torch.tensor(list(dict.fromkeys(class_indices(words, class_names, source="classes"))))


TASK = Task(
    name="generate",
    about="Make images of given classes.",
    schema=GenerateConfig,
    defaults=by_size(small=Ball(30, 0.5, 60), large=Ball(40, 1, 60)),
    open=open_source,
    examples=EXAMPLES,
)
