"""inpaint: the missing part of each image, filled in with what the classifier expects of its class."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import spsolve
from torch import Tensor

from refine.network import Network
from refine.synthesis.config import SMALL, Ball, InputConfig, by_size
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.loop import faithful_outside, towards_class
from refine.synthesis.masks import Masks, centred, read_masks, rectangle
from refine.synthesis.task import Source, Task, Work
from robust_models.images import ImageSet, to_u8
from robust_models.runtime.config import STRICT, Number

# The paper has a hole of 60x60 in 224 px. For one of 16x16 in CIFAR-10 (40 test images, the embedded classifier) eps 2
# keeps the PSNR of the fill, 13.0 dB of the mean one; eps 6 lowers it to 10.5: what is invented is seldom the original.
SMALL_BALL = Ball(2, 0.1, 40)
LARGE_BALL = Ball(21.6, 0.1, 720)

EXAMPLES = """\
  bigroc refine --task inpaint --ckpt cifar10-l2-small --input photos.npz --hole 16 --out filled.npz
  bigroc refine --task inpaint --ckpt imagenet.pt --input photos/ --mask masks/ --out filled/ --targets class:dog
"""


def filled_with_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x [N,3,H,W] where mask [N,1,H,W] is 0; where it is 1, the mean of each channel over the image's known pixels."""
    known = 1 - mask
    mean = (x * known).sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True)
    return x * known + mean * mask


def filled_smoothly(x: Tensor, mask: Tensor) -> Tensor:
    """x [N,3,H,W] where mask [N,1,H,W] is 0; where it is 1, each pixel is the mean of its neighbours (Laplace's
    equation, solved exactly; beyond the image's edge there are none)."""
    return torch.stack([_continued(*one) for one in zip(x, mask[:, 0], strict=True)])


def _continued(x: Tensor, mask: Tensor) -> Tensor:
    hole = mask.flatten().bool().numpy()
    if not hole.any():
        return x
    rows = csr_array(laplacian(_grid(*mask.shape)))[hole]
    values = x.flatten(1).double().numpy().T.copy()
    values[hole] = spsolve(rows[:, hole].tocsc(), -(rows[:, ~hole] @ values[~hole]))
    return torch.from_numpy(values.T).reshape(x.shape).to(x.dtype)


def _grid(height: int, width: int) -> coo_array:
    """Which pixels are neighbours, as a graph over height * width of them."""
    number = np.arange(height * width).reshape(height, width)
    first = np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()])
    second = np.concatenate([number[:, 1:].ravel(), number[1:].ravel()])
    ones = np.ones(2 * len(first))
    return coo_array((ones, (np.r_[first, second], np.r_[second, first])), shape=(number.size, number.size))


FILLS = {"mean": filled_with_mean, "smooth": filled_smoothly}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InpaintConfig(InputConfig):
    """What is missing of the images, and how it is filled in."""

    mask: Path | None = Field(
        default=None, description="a mask for all images or an image set with one for each; white is to be filled in"
    )
    rectangle: str | None = Field(default=None, description="or top,left,height,width of what is to be, in pixels")
    hole: int | None = Field(default=None, ge=1, description="or the side of a centred square, in pixels")
    fill: Literal["mean", "smooth"] | None = Field(
        default=None,
        description="what the hole begins as: the image's mean colour, or a smooth blend of what is around it "
        f"(null: the mean, as in the paper; up to {SMALL} px, where the blend does better, smooth)",
    )
    fidelity: Number = Field(default=10.0, ge=0, description="weight of the squared change of known pixels")
    paste: bool = Field(default=True, description="put the known pixels back, bit for bit")

    @model_validator(mode="after")
    def _one_mask(self) -> "InpaintConfig":
        given = [name for name in ("mask", "rectangle", "hole") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"mask: got {' and '.join(given) or 'none'}; give one of --mask, --rectangle, --hole")
        return self


def filled_in(config: InpaintConfig, x: Tensor, mask: Tensor | None) -> Tensor:
    """The images as the loop begins with them: the holes, where mask is 1, filled as config.fill says."""
    assert mask is not None
    fill = FILLS[config.fill or ("smooth" if max(x.shape[-2:]) <= SMALL else "mean")]
    return fill(x, mask)


def work_on(config: InpaintConfig, network: Network, x: Tensor, mask: Tensor | None, y: Tensor) -> Work:
    """The images x with their holes filled, and the loss that keeps what is known."""
    assert mask is not None
    x0, mask_here = network.here(x), network.here(mask)
    return Work(
        start=network.here(filled_in(config, x, mask)),
        y=network.here(y),
        objective=faithful_outside(towards_class, x0, mask_here, config.fidelity),
        keep_outside=mask_here if config.paste else None,
        original_u8=to_u8(x0),
    )


def open_source(config: InpaintConfig, network: Network) -> Source:
    """The images, their masks, and the class of each as it is seen once the hole is filled."""
    images = open_set(config, config.out)
    masks = _masks(config, images)

    def start(rows: Tensor) -> Tensor:
        return filled_in(config, read(images, rows), masks(rows))

    targets = find_targets(config, images, network, start)

    def work(rows: Tensor) -> Work:
        return work_on(config, network, read(images, rows), masks(rows), targets[rows])

    return Source(targets, images.size, work, lambda rows: to_u8(start(rows)), images.names)


def _masks(config: InpaintConfig, images: ImageSet) -> Masks:
    if config.mask is not None:
        return read_masks(config.mask, images)
    if config.rectangle is not None:
        return rectangle(config.rectangle, images.size)
    assert config.hole is not None
    return centred(config.hole, images.size)


TASK = Task(
    name="inpaint",
    about="Fill in the missing part of each image.",
    schema=InpaintConfig,
    defaults=by_size(small=SMALL_BALL, large=LARGE_BALL),
    open=open_source,
    examples=EXAMPLES,
    start=filled_in,
    work=work_on,
)
