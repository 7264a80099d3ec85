"""Counterfactual explanations: for each image the smallest change that makes a classifier say another class."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from tqdm import tqdm

from refine.flags import GridFlags, InputFlags, TaskFlags
from refine.network import Network, beside
from refine.refine_batch import block_size, naming
from refine.synthesis.changes import LENGTHS, check_changes, medians, rows_of, save_grid, write_changes
from refine.synthesis.inputs import find_targets, guesses, open_set, read
from refine.synthesis.run import Block, OpenRun, make_set, open_run
from refine.synthesis.smallest_change import ANGLE, Method, Search, closest
from refine.targets import check_targets
from refine.work_folder import made_once
from robust_models.checkpoints.checks import check_classifier, check_names
from robust_models.checkpoints.flags import file_of
from robust_models.errors import UserError, about_field
from robust_models.folding import folded
from robust_models.grids import check_picture_out
from robust_models.images import ImageSet, check_apart, to_float, to_u8
from robust_models.images.new_set import NewSet
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.config import STRICT, AtLeastOne, Number
from robust_models.runtime.device import MEASURED_PRECISION, PrecisionChoice, place
from robust_models.runtime.distributed import Ranks, join
from robust_models.runtime.files import sha256_of
from robust_models.threat import check_ball

EXAMPLES = """\
  bigroc refine --task counterfactual --ckpt cifar10-l2-small --input real.npz --out counterfactuals.npz \\
      --judge cifar10-ablation-l2-050 --changes changes.npz --grid counterfactuals.png
  bigroc refine --task counterfactual --ckpt cifar10-l2-small --input real.npz --out dogs.npz --targets class:dog \\
      --norm l2 --confidence 0.5
  bigroc refine --task counterfactual --ckpt cifar10-standard-small --guide cifar10-l2-small \\
      --input real.npz --out explained/
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CounterfactualConfig(GridFlags, InputFlags, TaskFlags):
    """What the classifier is to say instead, how surely, and in which sense the change is to be small."""

    out: Path = Field(
        description="where the counterfactuals go: an .npz, .npy, .pt, .tar or .parquet file, or else a folder"
    )
    targets: str = Field(
        default="second",
        description="second (the class that the classifier thinks next most probable), all (every class but its own, "
        "an image for each), class:NAME, given (the set's labels), or a .csv or .json file of labels",
    )
    confidence: Annotated[Number, Field(gt=0, lt=1)] = Field(
        default=Search.confidence, description="probability that the classifier is to give the target"
    )
    norm: Literal["l1.5", "l2", "l1", "linf"] = Field(
        default="l1.5", description="the change is smallest in this norm: l1.5, l2, l1 or linf"
    )
    eps: Annotated[Number, Field(ge=0)] | None = Field(
        default=None,
        description="change all images in a ball of this radius, pixels in [0,1], as surely as it allows (null: look "
        "for each image's smallest ball)",
    )
    method: Method = Field(
        default=Search.method, description="the steps: frank-wolfe, which need no projection, or projection"
    )
    steps: AtLeastOne = Field(default=Search.steps, description="in each ball")
    tries: AtLeastOne = Field(default=Search.tries, description="how many balls are tried for each image")
    guide: str | None = Field(
        default=None,
        description="a robust classifier of the same classes that directs the steps, where --ckpt is not robust and "
        "its own gradient is noise (null: none)",
    )
    angle: Annotated[Number, Field(ge=0, le=90)] = Field(
        default=ANGLE, description="degrees that the guide's direction may be from the gradient of --ckpt"
    )
    judge: str | None = Field(
        default=None, description="another classifier of the same classes, which says what it sees (null: none)"
    )
    changes: Path | None = Field(
        default=None, description="also write what changed as images: grey is nothing, the manifest has the scale"
    )
    precision: PrecisionChoice = Field(default="fp32", description=MEASURED_PRECISION)
    overwrite: bool = Field(default=False, description="replace what stands at --out and --changes")

    @model_validator(mode="after")
    def _consistent(self) -> "CounterfactualConfig":
        check_targets(self.targets, ("second", "all"))
        check_ball(self.norm, self.eps or 0)
        if self.eps is not None and self.tries != Search.tries:
            raise ValueError(f"tries: {self.tries} is for the search of the smallest ball; --eps {self.eps:g} is one")
        if self.guide is None and self.angle != ANGLE:
            raise ValueError(f"angle: {self.angle:g} is for --guide, which is not given")
        if self.guide == self.ckpt:
            raise ValueError(f"guide: {self.guide} is the classifier itself; leave it out")
        return self

    @property
    def search(self) -> Search:
        """The search that the flags describe."""
        return Search(self.norm, self.eps, self.method, self.steps, self.tries, self.confidence)


class Aims(NamedTuple):
    """Which image is to become which class, M pairs."""

    images: Tensor  # int64 [M], indices into the set
    targets: Tensor  # int64 [M]


def find_aims(config: CounterfactualConfig, images: ImageSet, network: Network) -> Aims:
    """The pairs that config.targets names, in the order of the images."""
    every, classes = torch.arange(len(images)), len(network.class_names)
    if classes < 2:
        raise UserError(f"ckpt: {config.ckpt} knows one class only; there is no other that it could say")
    if config.targets == "second":
        return Aims(every, guesses(config.batch_size, images, network, lambda logits: logits.topk(2).indices[:, 1]))
    if config.targets == "all":
        said = guesses(config.batch_size, images, network, lambda logits: logits.argmax(1))
        pairs = torch.cartesian_prod(every, torch.arange(classes))
        return Aims(*pairs[pairs[:, 1] != said[pairs[:, 0]]].T)
    return Aims(every, find_targets(config, images, network))


class Others(NamedTuple):
    """The classifiers beside the one that is explained."""

    guide: nn.Module | None
    judge: nn.Module | None


def _others(config: CounterfactualConfig, run: OpenRun) -> Others:
    """Loads them. UserError where their classes are others, or one takes two parts."""
    found: dict[str, nn.Module | None] = {}
    parts = {sha256_of(file_of(config.ckpt)): "the classifier that is explained"}
    for name in Others._fields:
        found[name] = None
        if (given := getattr(config, name)) is not None:
            with about_field(name):
                if part := parts.get(sha256_of(file_of(given))):
                    raise UserError(f"{given} is {part}; take another")
                parts[sha256_of(file_of(given))] = "the one that guides"
                other = place(folded(config.load(given)), run.network.device, run.precision.precision)
                found[name] = beside(other, run.network.model)
    return Others(**found)


def find_counterfactuals(config: CounterfactualConfig) -> Summary | None:
    """Writes the counterfactuals and OUT.manifest.jsonl, a row for each; gives the summary.

    None on the ranks of a torchrun job that only helped the first one.
    """
    with join() as ranks:
        check_picture_out(config.grid, "grid")
        run = open_run("counterfactual", config, config.out, ranks, loop="measurement")
        others = _others(config, run)
        if config.changes is not None:
            with about_field("changes"):
                for other in (config.input, config.out):
                    check_apart(config.changes, other)
                check_changes(config.changes, run, ranks, overwrite=config.overwrite)

        def begin() -> tuple[ImageSet, Aims]:
            images = open_set(config, config.out)
            return images, find_aims(config, images, run.network)

        def make(begun: tuple[ImageSet, Aims]) -> Summary | None:
            return _make(config, *begun, run, others, ranks)

        return made_once(ranks, run.work, run.settings, overwrite=config.overwrite, begin=begin, make=make)


def _make(
    config: CounterfactualConfig, images: ImageSet, aims: Aims, run: OpenRun, others: Others, ranks: Ranks
) -> Summary | None:
    """Makes what is not finished yet; on the first rank then set, manifest and pictures, and gives the summary."""
    network, work = run.network, run.work
    names = [images.names[int(i)] for i in aims.images]
    new = NewSet(aims.targets.numpy(), network.class_names, names, images.size)
    block = min(block_size(network.device, max(network.image_size, *images.size), config.batch_size), len(names))

    def before(rows: Tensor) -> Tensor:
        return to_u8(read(images, aims.images[rows]))

    def make_block(rows: Tensor, bar: "tqdm[Any]") -> Block:
        x_u8, y = network.here(before(rows)), network.here(aims.targets[rows])
        found = closest(
            network, to_float(x_u8), y, config.search, guide=others.guide, angle=config.angle, tick=bar.update
        )
        of_rows = [names[i] for i in rows.tolist()]
        with naming(of_rows, config.ckpt):
            return found.x_u8.cpu(), rows_of(of_rows, network, others.judge, x_u8, y, found)

    columns = ["valid", *([] if others.judge is None else ["judge_valid"])]
    steps = config.steps * (config.tries if config.eps is None else 1)
    made = make_set(ranks, work, new, block, make_block, columns, label="counterfactual", steps=steps)
    if made is None:
        return None
    if config.changes is not None:
        write_changes(config.changes, run, new, before, made.shards, overwrite=config.overwrite)
    if config.grid is not None:
        save_grid(config.grid, config.grid_images, config.norm, before, work, made.shards)
    asked = ("guide", "judge", "targets", "confidence", "norm", "eps", "method", "steps")
    return {
        "out": str(config.out),
        "manifest": str(work.manifest_out),
        "changes": None if config.changes is None else str(config.changes),
        "grid": None if config.grid is None else str(config.grid),
        "checkpoint": config.ckpt,
        **{name: getattr(config, name) for name in asked},
        "angle": None if config.guide is None else config.angle,
        "tries": config.tries if config.eps is None else 1,
        "n": made.means.n,
        **{f"{name}_share": share for name, share in made.means.summary().items()},
        "median": medians(work, made.shards),
        **run.precision.summary(),
        **made.rate,
    }


def _format_summary(summary: Summary) -> str:
    done = ["already done, with the same settings:"] if summary.get("already_done") else []
    ball = "the smallest ball of each" if summary["eps"] is None else f"eps {summary['eps']:g}"
    median = summary["median"]
    lines = [
        *done,
        f"{summary['out']}: {summary['n']} counterfactuals (targets {summary['targets']}), {summary['norm']}, {ball}, "
        f"{summary['steps']} {summary['method']} steps; {summary['valid_share']:.1%} say their target with confidence "
        f"{summary['confidence']:g}, {summary['precision']} ({summary['precision_reason']})",
    ]
    if median["l2"] is not None:
        lengths = ", ".join(f"{name} {median[name]:.4g}" for name in LENGTHS)
        lines.append(f"of those, medians: {lengths}; {median['changed']:.1%} of the pixels changed")
    if summary["judge"] is not None:
        lines.append(f"{summary['judge']}, which took no part, sees the target in {summary['judge_valid_share']:.1%}")
    lines += [f"{name}: {summary[name]}" for name in ("manifest", "changes", "grid") if summary[name]]
    return "\n".join(lines)


def _check(config: CounterfactualConfig) -> None:
    check_names(config)
    for name in Others._fields:
        if (given := getattr(config, name)) is not None:
            check_classifier(given, field=name)


COMMAND = Command(
    name="bigroc refine --task counterfactual",
    about="Explain a classifier by the smallest changes that make it say another class.",
    schema=CounterfactualConfig,
    work=find_counterfactuals,
    format_summary=_format_summary,
    examples=EXAMPLES,
    check=_check,
)
