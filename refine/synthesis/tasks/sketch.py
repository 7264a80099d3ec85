"""A drawing turned into an image of a class: cross-entropy to the class, from the drawing.

Santurkar et al. 2019, arXiv:1906.09453.
"""

from pathlib import Path

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from refine.network import Network
from refine.synthesis.config import Ball, SynthesisConfig, by_size
from refine.synthesis.drawings import open_drawings
from refine.synthesis.loop import work_towards_class
from refine.synthesis.task import Source, Task, Work
from robust_models.grids import fitted
from robust_models.images import to_u8
from robust_models.labels import class_index
from robust_models.runtime.config import STRICT

SMALL = Ball(4, 0.2, 40)  # by eye, of eps 4, 6, 8 and 10 with the embedded classifier: the paper has none for CIFAR-10
LARGE = Ball(40, 1, 60)

EXAMPLES = """\
  bigroc refine --task sketch --ckpt cifar10-l2-small --input drawing.png --out ships/ --target ship --grid ship.png
  bigroc refine --task sketch --ckpt CHECKPOINT.pt --input drawings/ --out birds/ --target bird
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SketchConfig(SynthesisConfig):
    """Which drawings, and the class that they are to become."""

    input: Path = Field(description="a drawing (any image file; transparent is white), a folder of them, or a set")
    target: str | None = Field(
        default=None, description="the class that the drawing is to become: its name or index (null: the --prompt)"
    )

    @model_validator(mode="after")
    def _becomes_something(self) -> "SketchConfig":
        if self.target is None and self.prompt is None:
            raise ValueError("target: is required; say what the drawing is to become: --target CLASS")
        return self


def work_on(config: SketchConfig, network: Network, x: Tensor, mask: Tensor | None, y: Tensor) -> Work:
    """Drawings of one size x, at the classifier's size, towards their classes y."""
    return work_towards_class(config, network, fitted(x, network.image_size), None, y)


def open_source(config: SketchConfig, network: Network) -> Source:
    """The drawings at the classifier's size, towards the one class."""
    side = network.image_size
    drawings = open_drawings(config.input, side)
    targets = torch.full((len(drawings.names),), class_index(config.target or 0, network.class_names, source="target"))

    def read(rows: Tensor) -> Tensor:
        return torch.cat([drawings.read(i) for i in rows.tolist()])

    def work(rows: Tensor) -> Work:
        return work_on(config, network, read(rows), None, targets[rows])

    return Source(targets, (side, side), work, lambda rows: to_u8(read(rows)), drawings.names)


TASK = Task(
    name="sketch",
    about="Turn a drawing into an image of a class.",
    schema=SketchConfig,
    defaults=by_size(small=SMALL, large=LARGE),
    open=open_source,
    examples=EXAMPLES,
    work=work_on,
)
