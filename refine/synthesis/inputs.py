"""Image sets as tasks begin with them: opened, read by rows, and each image's class."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from refine.flags import InputFlags
from refine.network import Network
from refine.refine_batch import block_size, filled
from refine.targets import known_targets, mode_of, pseudo
from robust_models.attacks import frozen_eval
from robust_models.images import ImageSet, check_apart, open_images, to_float
from robust_models.runtime.distributed import print_once


def open_set(config: InputFlags, out: Path) -> ImageSet:
    """The set at config.input; what was skipped is listed on stderr. UserError where `out` would lie in it."""
    check_apart(out, config.input)
    images = open_images(config.input, on_error=config.on_error, limit=config.limit)
    print_once(f"skipped: {problem}" for problem in images.skipped)
    return images


def read(images: ImageSet, rows: Tensor) -> Tensor:
    """The images at these rows, in any order, [n,3,H,W] float in [0,1] on the CPU; no others are read."""
    wanted, place = rows.unique(return_inverse=True)
    runs = wanted.tensor_split((wanted.diff() != 1).nonzero().flatten() + 1)
    return to_float(torch.cat([images.read(int(run[0]), int(run[-1]) + 1) for run in runs]))[place]


class Targeted(Protocol):
    """Flags that say towards which class, and how many images are looked at at once on a GPU."""

    @property
    def targets(self) -> str | None: ...
    @property
    def prompt(self) -> str | None: ...
    @property
    def batch_size(self) -> int: ...


def find_targets(
    config: Targeted, images: ImageSet, network: Network, seen: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Each image's class as config.targets says, [N] int64 on the CPU.

    Where the classifier is to guess, it sees seen(rows), [n,3,H,W] float (None: the images themselves).
    """
    mode = mode_of(config.targets, config.prompt, images.labels)
    known = known_targets(mode, images, network.model)
    return guesses(config.batch_size, images, network, pseudo, seen) if known is None else known


@torch.no_grad()
def guesses(
    batch_size: int,
    images: ImageSet,
    network: Network,
    pick: Callable[[Tensor], Tensor],
    seen: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """pick(logits [n,classes]) of every image, [N] on the CPU; the classifier sees what find_targets says."""
    shown = seen or (lambda rows: read(images, rows))
    block = min(block_size(network.device, max(network.image_size, *images.size), batch_size), len(images))
    with frozen_eval(network):
        found = [
            pick(network(network.here(filled(shown(rows), block))))[: len(rows)].cpu()
            for rows in torch.arange(len(images)).split(block)
        ]
    return torch.cat(found)
