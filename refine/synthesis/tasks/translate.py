"""Images of one class turned into another, or those of one domain into the other, from the images themselves.

Santurkar et al. 2019, arXiv:1906.09453. Theirs is a network of two domains, horses and zebras for instance: the recipe
finetune_folder.yaml makes one from a folder with two subfolders. Any classifier with the wanted class does.
"""

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from refine.flags import InputFlags
from refine.network import Network
from refine.synthesis.config import Ball, SynthesisConfig, by_size
from refine.synthesis.inputs import open_set, read
from refine.synthesis.loop import work_towards_class
from refine.synthesis.task import Source, Task, Work
from robust_models.errors import UserError
from robust_models.images import ImageSet, to_u8
from robust_models.labels import class_index, fit_labels
from robust_models.runtime.config import STRICT

SMALL = Ball(5, 0.25, 40)  # by eye, of eps 3, 5, 8 and 11 with the embedded classifier: the paper has none for CIFAR-10
LARGE = Ball(80, 0.5, 200)

EXAMPLES = """\
  bigroc refine --task translate --ckpt cifar10-l2-small --input real.npz --out dogs.npz \\
      --source-class cat --target-class dog --grid dogs.png
  bigroc refine --task translate --ckpt runs/horse2zebra/classifier.safetensors --input horses/ --out zebras/ \\
      --source-class horse
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TranslateConfig(InputFlags, SynthesisConfig):
    """From which class, into which."""

    source_class: str | None = Field(
        default=None, description="take the images of this class, by the set's labels if it has some (null: all images)"
    )
    target_class: str | None = Field(
        default=None,
        description="turn them into this class (null: the --prompt; of two classes, the one that an image is not of)",
    )

    @model_validator(mode="after")
    def _is_a_way(self) -> "TranslateConfig":
        if self.source_class is not None and self.source_class == self.target_class:
            raise ValueError(f"target_class: {self.target_class} is the source class too; name another")
        return self


def choose(config: TranslateConfig, images: ImageSet, class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The images to translate, as indices into the set [n], and the class to turn each into [n]; both int64."""
    wanted = "0" if config.target_class is None and config.prompt is not None else config.target_class
    own = _own_classes(images, class_names) if wanted is None or config.source_class is not None else None
    chosen = torch.arange(len(images))
    if config.source_class is not None:
        source = class_index(config.source_class, class_names, source="source_class")
        if own is not None:
            chosen = chosen[own == source]
        if not len(chosen):
            raise UserError(f"source_class: {images.path} has no images of class {class_names[source]}")
        own = torch.full((len(images),), source)
    if wanted is not None:
        target = class_index(wanted, class_names, source="target_class")
        return chosen, torch.full_like(chosen, target)
    return chosen, _other_domain(own, images, class_names)[chosen]


def _own_classes(images: ImageSet, class_names: tuple[str, ...]) -> Tensor | None:
    """[N] int64; None where the set has no labels."""
    if images.labels is None:
        return None
    return torch.from_numpy(fit_labels(images.labels, images.class_names, class_names, source=str(images.path)))


def _other_domain(own: Tensor | None, images: ImageSet, class_names: tuple[str, ...]) -> Tensor:
    if len(class_names) != 2:
        raise UserError(
            f"target_class: is required, as this classifier has {len(class_names)} classes, not two domains "
            f"({', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''})"
        )
    if own is None:
        raise UserError(
            f"target_class: {images.path} has no labels that say which domain its images are of; give "
            f"--target-class or --source-class ({' or '.join(class_names)})"
        )
    return 1 - own


def open_source(config: TranslateConfig, network: Network) -> Source:
    """The chosen images, towards the class that each is to become."""
    images = open_set(config, config.out)
    chosen, targets = choose(config, images, network.class_names)

    def work(rows: Tensor) -> Work:
        return work_towards_class(config, network, read(images, chosen[rows]), None, targets[rows])

    def before(rows: Tensor) -> Tensor:
        return to_u8(read(images, chosen[rows]))

    return Source(targets, images.size, work, before, [images.names[int(i)] for i in chosen.tolist()])


TASK = Task(
    name="translate",
    about="Turn images of one class into another, or of one domain into the other.",
    schema=TranslateConfig,
    defaults=by_size(small=SMALL, large=LARGE),
    open=open_source,
    examples=EXAMPLES,
    work=work_towards_class,
)
