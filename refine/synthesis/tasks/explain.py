"""What a classifier sees in images: the probability of each class, and the change that would raise a class most.

That change is the gradient of the pixels. Of a robust classifier it looks like the class, of another like noise.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from refine.flags import InputFlags, TaskFlags
from refine.manifest import DIGITS, Means
from refine.network import Network
from refine.refine_batch import block_size
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.run import Block, make_set, open_run
from refine.targets import check_targets
from refine.work_folder import WorkFolder, made_once
from robust_models.attacks import frozen_eval, input_gradient
from robust_models.checkpoints.checks import check_names
from robust_models.images import ImageSet, to_u8
from robust_models.images.new_set import NewSet
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.config import STRICT
from robust_models.runtime.device import MEASURED_PRECISION, PrecisionChoice
from robust_models.runtime.distributed import Ranks, join

STRONGEST = 0.995  # of the gradient's numbers are no larger than what is drawn as black or white

EXAMPLES = """\
  bigroc refine --task explain --ckpt cifar10-l2-small --input photo.png --out gradient/
  bigroc refine --task explain --ckpt cifar10-l2-small --input real.npz --out gradients.npz --targets class:dog
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ExplainConfig(InputFlags, TaskFlags):
    """Which images, and the class whose gradient is drawn."""

    out: Path = Field(description="where the gradients go, as images: an .npz, .npy, .pt, .tar, .parquet, or a folder")
    targets: str | None = Field(
        default=None,
        description="given (the set's labels), pseudo (the classifier's guess), class:NAME, or a .csv or .json file of "
        "labels; default: given where there are labels, else pseudo",
    )
    precision: PrecisionChoice = Field(default="fp32", description=MEASURED_PRECISION)
    overwrite: bool = Field(default=False, description="replace what stands at --out")

    @model_validator(mode="after")
    def _targets_are_some(self) -> "ExplainConfig":
        check_targets(self.targets, ("pseudo",))
        return self


class Explained(NamedTuple):
    """Of N images, on the CPU."""

    probs: Tensor  # [N,classes]
    gradient_u8: Tensor  # [N,3,H,W], see drawn


def drawn(gradient: Tensor) -> Tensor:
    """A gradient [N,3,H,W] as images in [0,1]: mid-grey is 0; each image's strongest numbers are black and white."""
    size = gradient.abs().flatten(1)
    strongest = size.kthvalue(max(1, round(STRONGEST * size.shape[1])), dim=1).values.clamp_min(1e-30)
    return (0.5 + 0.5 * gradient / strongest.view(-1, 1, 1, 1)).clamp(0, 1)


def explain(network: Network, x: Tensor, y: Tensor) -> Explained:
    """What the network sees in x [N,3,H,W] in [0,1], and what would raise the classes y [N]; both on the CPU."""
    x = network.here(x)
    with frozen_eval(network):
        raising = -input_gradient(network, x, network.here(y))
        with torch.no_grad():
            probs = network(x).softmax(dim=1)
    return Explained(probs.cpu(), to_u8(drawn(raising)).cpu())


def explain_set(config: ExplainConfig) -> Summary | None:
    """Writes the gradients and OUT.manifest.jsonl, a row per image with its probabilities; gives the summary.

    None on the ranks of a torchrun job that only helped the first one.
    """
    with join() as ranks:
        network, precision, settings, work = open_run("explain", config, config.out, ranks, loop="measurement")

        def begin() -> tuple[ImageSet, Tensor]:
            images = open_set(config, config.out)
            return images, find_targets(config, images, network)

        def make(begun: tuple[ImageSet, Tensor]) -> Summary | None:
            made = _make(config, *begun, network, ranks, work)
            if made is None:
                return None
            facts = {"out": str(config.out), "manifest": str(work.manifest_out), "checkpoint": config.ckpt}
            return facts | {"n": made.n, "seen_as_target": round(made.sums["on_target"]), **precision.summary()}

        return made_once(ranks, work, settings, overwrite=config.overwrite, begin=begin, make=make)


def _make(
    config: ExplainConfig, images: ImageSet, targets: Tensor, network: Network, ranks: Ranks, work: WorkFolder
) -> Means | None:
    """Makes set and manifest in the work folder; on the first rank, gives how many images are seen as their target."""
    new, names = NewSet(targets.numpy(), network.class_names, images.names, images.size), network.class_names
    block = min(block_size(network.device, max(network.image_size, *images.size), config.batch_size), len(images))

    def explain_block(rows: Tensor, bar: "tqdm[Any]") -> Block:
        y = targets[rows]
        found = explain(network, read(images, rows), y)
        bar.update()
        return found.gradient_u8, [
            {
                "source": images.names[i],
                "class": names[target],
                "on_target": int(probs.argmax()) == target,
                "probs": {name: round(p, DIGITS) for name, p in zip(names, probs.tolist(), strict=True)},
            }
            for i, target, probs in zip(rows.tolist(), y.tolist(), found.probs, strict=True)
        ]

    made = make_set(ranks, work, new, block, explain_block, ["on_target"], label="explain")
    return None if made is None else made.means


def _format_summary(summary: Summary) -> str:
    done = "already done, with the same settings:\n" if summary.get("already_done") else ""
    return (
        f"{done}{summary['out']}: the gradients of {summary['n']} images, {summary['seen_as_target']} of them seen as "
        f"their target, {summary['precision']} ({summary['precision_reason']})\nmanifest: {summary['manifest']}"
    )


COMMAND = Command(
    name="bigroc refine --task explain",
    about="Show what a classifier sees in images: its classes, and the gradient of the pixels.",
    schema=ExplainConfig,
    work=explain_set,
    format_summary=_format_summary,
    examples=EXAMPLES,
    check=check_names,
)
