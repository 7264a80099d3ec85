"""A task on a whole set: makes, writes and lists its images, a block at a time.

A block is a shard of the work folder (refine/work_folder.py): the ranks of a torchrun job take them in turn, and a run
that was killed goes on with those that are not finished. Blocks have one size (refine/refine_batch.py), so that images
depend neither on the batch size nor on the number of ranks; memory does not grow with their number.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from refine.flags import InputFlags, TaskFlags, check_pictures_out
from refine.manifest import Means
from refine.network import Network
from refine.refine_batch import block_size, check_finite, filled, naming
from refine.synthesis.config import Ball, SynthesisConfig, deciding_of_task
from refine.synthesis.loop import iterates, stored
from refine.synthesis.measures import MEANS, manifest_rows, measure
from refine.synthesis.task import Source, Task
from refine.synthesis.task_pictures import save_grid, save_trajectory
from refine.work_folder import Row, Shards, WorkFolder, made_once, my_shards
from robust_models.attacks import frozen_eval
from robust_models.checkpoints.checks import check_names
from robust_models.folding import folded
from robust_models.images import check_apart
from robust_models.images.new_set import NewSet, check_new_out, write_new_set
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.device import Loop, PrecisionDecision, attack_loop, decide_precision, place
from robust_models.runtime.distributed import Ranks, join

Block = tuple[Tensor, list[Row]]  # some images, uint8 [n,3,H,W] on the CPU, and their rows of the manifest
MakeBlock = Callable[[Tensor, "tqdm[Any]"], Block]


def synthesize_set(task: Task, config: SynthesisConfig) -> Summary | None:
    """Makes config.out and OUT.manifest.jsonl, a row per image; gives the summary: N, means over the manifest, rate.

    None on the ranks of a torchrun job that only helped the first one.
    """
    with join() as ranks:
        check_pictures_out(config)
        network, precision, settings, work = open_run(task.name, config, config.out, ranks)
        begin = partial(_begin, task, config, network)
        make = partial(_make, task, config, network, precision, ranks, work)
        return made_once(ranks, work, settings, overwrite=config.overwrite, begin=begin, make=make)


class OpenRun(NamedTuple):
    """What a task's run begins with."""

    network: Network
    precision: PrecisionDecision
    settings: dict[str, Any]  # all that decide the result
    work: WorkFolder


def open_run(task: str, config: TaskFlags, out: Path, ranks: Ranks, *, loop: Loop | None = None) -> OpenRun:
    """The classifier in its place, and the work folder of `out`. UserError where the set cannot go there.

    loop: what decides the precision (None: an attack on the classifier).
    """
    check_new_out(out, overwrite=True)
    classifier, device = folded(config.load(config.ckpt)), ranks.device(config.device)
    precision = decide_precision(config.precision, device, loop or attack_loop([classifier]))
    network = Network(place(classifier, device, precision.precision))
    if isinstance(config, InputFlags):
        check_apart(out, config.input)
    settings = deciding_of_task(task, config, device, precision.precision)
    return OpenRun(network, precision, settings, WorkFolder(out))


def _begin(task: Task, config: SynthesisConfig, network: Network) -> tuple[Source, Ball]:
    """All that may still be refused, before anything is written."""
    source = task.open(config, network)
    return source, config.ball(source.ball or task.defaults(max(source.size)))


def _make(
    task: Task,
    config: SynthesisConfig,
    network: Network,
    precision: PrecisionDecision,
    ranks: Ranks,
    work: WorkFolder,
    begun: tuple[Source, Ball],
) -> Summary | None:
    """Makes what is not finished yet; on the first rank then set, manifest and pictures, and gives the summary."""
    source, ball = begun
    n = len(source.names)
    block = min(block_size(network.device, max(network.image_size, *source.size), config.batch_size), n)
    new = NewSet(source.targets.numpy(), network.class_names, source.names, source.size)
    make = partial(synthesize_block, network, source, ball, ckpt=config.ckpt)
    with frozen_eval(network):
        made = make_set(ranks, work, new, block, make, MEANS, label=task.name, steps=ball.steps)
    if made is None:
        return None
    if config.grid is not None:
        save_grid(config.grid, config.grid_images, source, ball, work, made.shards)
    if config.trajectory is not None:
        save_trajectory(config.trajectory, network, source, ball, block, config.trajectory_images)
    return {
        "out": str(config.out),
        "manifest": str(work.manifest_out),
        "grid": None if config.grid is None else str(config.grid),
        "trajectory": None if config.trajectory is None else str(config.trajectory),
        "task": task.name,
        "checkpoint": config.ckpt,
        "n": n,
        "size": list(source.size),
        "norm": ball.norm,
        "eps": ball.eps,
        "step_size": ball.step_size,
        "steps": ball.steps,
        "seed": config.seed,
        **precision.summary(),
        **made.means.summary(),
        **made.rate,
    }


def synthesize_block(
    network: Network, source: Source, ball: Ball, rows: Tensor, bar: "tqdm[Any]", *, ckpt: str = "the classifier"
) -> Block:
    """The images of these rows [n]. The network is the caller's to freeze (frozen_eval)."""
    work = source.work(rows)
    x = work.start
    for step, x in enumerate(iterates(network, work, ball)):  # noqa: B007  (only the last one is wanted)
        bar.update(step > 0)
    x_u8 = stored(x, work)
    names = [source.names[int(i)] for i in rows]
    with naming(names, ckpt):
        check_finite(x, "gradients")
        measured = measure(network, work, x_u8, ball.norm)
        check_finite(torch.stack([measured[name].float() for name in MEANS], dim=1), "outputs")
    return x_u8.cpu(), manifest_rows(measured, names, network.class_names, network.model.precision)


class MadeSet(NamedTuple):
    """A set that stands assembled in the work folder."""

    shards: Shards
    means: Means
    rate: dict[str, float]  # of what was made just now


def make_set(
    ranks: Ranks,
    work: WorkFolder,
    new: NewSet,
    block: int,
    make: MakeBlock,
    columns: Iterable[str],
    *,
    label: str,
    steps: int = 1,
) -> MadeSet | None:
    """Makes the shards that are not finished and then, on the first rank (None on the others), set and manifest.

    make(rows, bar) gives the images of `block` consecutive rows, the last of which may come again to fill it, and moves
    the bar by `steps`. columns: those of the manifest whose means are wanted. A run that is gone on with keeps its
    shards, though the block may be another one now.
    """
    n = len(new.names)
    size = ranks.share(work.agreed("shard_size", block) if ranks.is_first else block)
    shards, block = Shards(n, size), min(block, size)
    started, done = time.perf_counter(), 0
    for k, bar in my_shards(
        ranks, shards, label, work.has_shard, amount=lambda k: steps * -(-shards.count(k) // block), unit="step"
    ):
        part = shards.part(k)
        bar.set_postfix_str(f"images {part.start}-{part.stop - 1} of {n}")
        with work.writing_shard(k, (shards.count(k), 3, *new.size), "uint8") as add:
            for rows in torch.arange(part.start, part.stop).split(block):
                x_u8, lines = make(filled(rows, block), bar)
                add(x_u8[: len(rows)], lines[: len(rows)])
        done += shards.count(k)
    done = ranks.total(done)
    wall_s = time.perf_counter() - started
    if not ranks.is_first:
        return None
    work.drop_assembled()
    with write_new_set(work.assembled, new) as add:
        work.copy_pixels(shards, lambda _: add)
    means = Means(columns)
    work.write_manifest(means.over(row for k in range(len(shards)) for row in work.rows(k)))
    return MadeSet(shards, means, {"wall_s": round(wall_s, 2), "images_per_s": round(done / wall_s, 2)})


def command_of(task: Task) -> Command:
    """`bigroc refine --task NAME`, from what the task says of itself."""
    return Command(
        name=f"bigroc refine --task {task.name}",
        about=task.about,
        schema=task.schema,
        work=partial(synthesize_set, task),
        format_summary=_format_summary,
        examples=task.examples,
        check=check_names,
    )


def _format_summary(summary: Summary) -> str:
    height, width = summary["size"]
    lines = ["already done, with the same settings:"] if summary.get("already_done") else []
    lines += [
        f"{summary['out']}: {summary['n']} images of {width}x{height}, {summary['norm']} eps {summary['eps']:g}, "
        f"{summary['steps']} steps of {summary['step_size']:g}, {summary['images_per_s']} images/s, "
        f"{summary['precision']} ({summary['precision_reason']})",
        f"confidence in the target {summary['confidence_before']:.3f} -> {summary['confidence_after']:.3f}, objective "
        f"{summary['objective_before']:.3f} -> {summary['objective_after']:.3f}, mean {summary['norm']} distance "
        f"{summary['distance']:.2f}",
    ]
    lines += [f"{name}: {summary[name]}" for name in ("manifest", "grid", "trajectory") if summary[name]]
    return "\n".join(lines)
