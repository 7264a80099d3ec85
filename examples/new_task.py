"""A new synthesis task, complete: colour for grey photographs, from what the classifier knows of their class.

python examples/new_task.py --ckpt cifar10-l2-small --input photos.npz --out coloured.npz --grid coloured.png
"""

import sys
from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from refine.synthesis import Ball, Network, Source, Task, Work
from refine.synthesis.config import InputConfig
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.run import command_of
from robust_models.attacks import cross_entropy
from robust_models.images import to_u8
from robust_models.runtime.command import run
from robust_models.runtime.config import STRICT, Number


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ColourConfig(InputConfig):  # --ckpt, --input, --out, --targets, --eps, --steps, --grid, --seed ... are there
    brightness: Number = Field(default=1000.0, ge=0, description="how much a change of brightness counts")
    smoothness: Number = Field(default=300.0, ge=0, description="how much it counts that neighbours differ in colour")


def luma(x: Tensor) -> Tensor:
    """x [N,3,H,W] -> its brightness [N,1,H,W] (ITU-R BT.601)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def roughness(x: Tensor) -> Tensor:
    """How far colours are from their mean over 5x5 pixels, squared, [N]."""
    colour = x - luma(x)
    blurred = F.avg_pool2d(F.pad(colour, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return (colour - blurred).square().flatten(1).mean(dim=1)


def open_source(config: ColourConfig, network: Network) -> Source:
    images = open_set(config, config.out)

    def grey(rows: Tensor) -> Tensor:
        return luma(read(images, rows)).repeat(1, 3, 1, 1)

    targets = find_targets(config, images, network, grey)  # the classifier guesses from what is grey

    def work(rows: Tensor) -> Work:
        start = network.here(grey(rows))

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            change = (luma(x) - luma(start)).square().flatten(1).mean(dim=1)
            return cross_entropy(model(x), y) + config.brightness * change + config.smoothness * roughness(x)

        return Work(start, network.here(targets[rows]), objective)

    return Source(targets, images.size, work, lambda rows: to_u8(grey(rows)), images.names)


def defaults(side: int) -> Ball:
    """eps, step and number of steps for images of this side: an L2 distance grows with it."""
    return Ball(eps=4 * side / 32, step_size=0.1 * side / 32, steps=80)


TASK = Task("colour", "Colour grey photographs.", ColourConfig, defaults, open_source)


def main(argv: Sequence[str] | None = None) -> int:
    return run(command_of(TASK), argv)


if __name__ == "__main__":
    sys.exit(main())
