"""superres: small images enlarged by a whole factor, with the detail that the classifier expects of their class."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from refine.network import Network
from refine.synthesis.config import Ball, InputConfig, by_size
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.loop import work_towards_class
from refine.synthesis.task import Source, Task, Work
from robust_models.images import to_u8
from robust_models.runtime.config import STRICT

# The paper enlarges to 224 px: CIFAR-10 with eps 15, steps 1, 50; ImageNet as below. On 32 px, where a distance is of
# fewer pixels, 15 / 7 is the same change of each; eps 15 there puts a picture of the class in the image's place.
SMALL = Ball(2, 0.2, 20)
LARGE = Ball(8, 1, 40)

EXAMPLES = """\
  bigroc refine --task superres --ckpt cifar10-l2-small --input small.npz --factor 4 --out large.npz
  bigroc refine --task superres --ckpt imagenet.pt --input small/ --factor 8 --out large/ --targets class:dog
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SuperresConfig(InputConfig):
    """How much larger, and from which enlargement on."""

    factor: int = Field(ge=2, le=64, description="how many times larger the images become, a whole number")
    start_from: Literal["nearest", "bicubic"] = Field(
        default="nearest", description="the enlargement that it begins with"
    )


def enlarge(x: Tensor, factor: int, how: str) -> Tensor:
    """x [N,3,H,W] in [0,1] -> [N,3,factor*H,factor*W] in [0,1]; how: nearest or bicubic (half-pixel centres)."""
    if how == "nearest":
        return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)


def enlarged(config: SuperresConfig, x: Tensor, mask: Tensor | None) -> Tensor:
    """The images as the loop begins with them."""
    return enlarge(x, config.factor, config.start_from)


def work_on(config: SuperresConfig, network: Network, x: Tensor, mask: Tensor | None, y: Tensor) -> Work:
    """The small images x, enlarged and moved towards their classes y."""
    return work_towards_class(config, network, enlarged(config, x, mask), None, y)


def open_source(config: SuperresConfig, network: Network) -> Source:
    """The enlarged images, towards the class of each."""
    images = open_set(config, config.out)
    targets = find_targets(config, images, network, lambda rows: enlarged(config, read(images, rows), None))

    def work(rows: Tensor) -> Work:
        return work_on(config, network, read(images, rows), None, targets[rows])

    height, width = images.size
    size = (height * config.factor, width * config.factor)
    return Source(targets, size, work, lambda rows: to_u8(read(images, rows)), images.names)


TASK = Task(
    name="superres",
    about="Enlarge images by a whole factor, towards what the classifier expects of their class.",
    schema=SuperresConfig,
    defaults=by_size(small=SMALL, large=LARGE),
    open=open_source,
    examples=EXAMPLES,
    start=enlarged,
    work=work_on,
)
