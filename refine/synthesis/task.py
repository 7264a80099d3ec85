"""What a synthesis task is: images to begin with and something to lower. All tasks share the loop (loop.py).

A new task is a module in tasks/ with a `TASK` in it, and its name in registry.py. All of tasks/brighten.py:

    @dataclass(frozen=True, config=STRICT, kw_only=True)
    class BrightenConfig(InputConfig):  # --ckpt, --input, --out, --targets, --eps, ... are there
        weight: float = Field(default=1.0, description="how much brightness counts against the class")

    def open_source(config: BrightenConfig, network: Network) -> Source:
        images = open_set(config, config.out)
        targets = find_targets(config, images, network)

        def work(rows: Tensor) -> Work:
            def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                return cross_entropy(model(x), y) - config.weight * x.flatten(1).mean(dim=1)

            return Work(network.here(read(images, rows)), network.here(targets[rows]), objective)

        return Source(targets, images.size, work, lambda rows: to_u8(read(images, rows)), images.names)

    TASK = Task("brighten", "Make images brighter.", BrightenConfig, lambda side: Ball(5, 0.5, 20), open_source)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from refine.network import Network
from refine.synthesis.config import Ball, SynthesisConfig
from robust_models.attacks import Iterate

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, x [N,3,H,W] in [0,1], y [N]) -> [N], lower is better. x may require grad; the model, for x of any size, is a
Network: model(x) are logits, model.features(x) what the last layer sees. Each image's value is its own."""


@dataclass(frozen=True)
class Work:
    """A batch for the loop, on the network's device. The objective closes over what these very N images need."""

    start: Tensor  # where the loop begins, [N,3,H,W] float in [0,1]
    y: Tensor  # target classes [N] int64
    objective: Objective
    center: Tensor | None = None  # of the ball; None: start
    keep_outside: Tensor | None = None  # [N,1,H,W] of 0 and 1: where it is 0 the result is original_u8, bit for bit
    original_u8: Tensor | None = None  # [N,3,H,W], given together with keep_outside
    # (model, work, ball) -> the points of the way, for a loop of the task's own (samplers.py); None: PGD's
    sampler: "Callable[[nn.Module, Work, Ball], Iterator[Iterate]] | None" = None


def confidences(row: dict[str, Any]) -> str:
    """The class of a manifest row and its probability before and after."""
    return f"{row['class']}\n{row['confidence_before']:.0%} > {row['confidence_after']:.0%}"


@dataclass(frozen=True)
class Shown:
    """How --grid calls its two rows, what it says below each image, and what explains that."""

    before: str = "before"
    after: str = "after"
    caption: Callable[[dict[str, Any]], str] = confidences
    note: str = "Below each image: its target, and the probability that the classifier gives it before > after."


@dataclass(frozen=True)
class Source:
    """What a task makes of its config: N images to be, read and worked on a block at a time.

    work and before are called with rows [n] int64 on the CPU: consecutive numbers, whose last may come again to fill a
    block. What work(rows) gives for one row must not depend on the others, so that batches change nothing.
    """

    targets: Tensor  # the class of each image, [N] int64 on the CPU: the labels of the result
    size: tuple[int, int]  # height, width of the result, pixels
    work: Callable[[Tensor], Work]
    before: Callable[[Tensor], Tensor]  # -> uint8 [n,3,h,w] on the CPU, which --grid shows beside the result
    names: Sequence[str]  # of each image in the manifest (robust_models.images.image_set.Numbered makes some)
    shown: Shown = Shown()
    ball: Ball | None = None  # the usual one, where classifier or flags have another than the task's defaults


def as_given(config: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """The start of a task that begins with the images themselves."""
    return x


@dataclass(frozen=True)
class Task:
    """One of `bigroc refine --task NAME`, for images from files (open) and, where it can, for tensors (start, work).

    Tensors are images x [N,3,H,W] float in [0,1] and, where the task has a use for them, masks [N,1,H,W] of 0 and 1.
    """

    name: str
    about: str
    schema: type[SynthesisConfig]  # its fields are the flags
    defaults: Callable[[int], Ball]  # the larger side of the images to be made, pixels -> the paper's ball and steps
    open: Callable[[Any, Network], Source]  # (config of the schema, network); UserError for what does not fit
    examples: str = ""  # commands, each line indented by two spaces
    # (config, x, mask) -> where the loop begins, on the CPU; a classifier that is to guess the class sees this
    start: Callable[[Any, Tensor, Tensor | None], Tensor] = as_given
    work: Callable[[Any, Network, Tensor, Tensor | None, Tensor], Work] | None = None  # (config, network, x, mask, y)
