"""A task on a whole set: makes, writes and lists its images, a block at a time.

Blocks have one size (refine/refine_batch.py), so that an image does not depend on the batch size; memory does not grow
with the number of images. One process; a run that was killed begins anew, as nothing stands before all is done, but
one killed while it moves the finished set to its place (refine/work_folder.py) goes on with that.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from refine.flags import InputFlags, check_pictures_out
from refine.network import Network
from refine.refine_batch import block_size, check_finite, filled, naming
from refine.synthesis.config import Ball, SynthesisConfig, deciding_of_task
from refine.synthesis.loop import iterates, stored
from refine.synthesis.measures import MEANS, manifest_rows, measure
from refine.synthesis.task import Source, Task
from refine.synthesis.task_pictures import Grid, save_trajectory
from refine.work_folder import Row, WorkFolder, as_line
from robust_models.attacks import frozen_eval
from robust_models.checkpoints.checks import check_names
from robust_models.errors import UserError
from robust_models.folding import folded
from robust_models.images import check_apart
from robust_models.images.new_set import NewSet, check_new_out, write_new_set
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.device import PrecisionDecision, attack_loop, decide_precision, pick_device, place
from robust_models.runtime.files import exclusive, whole_file

Begun = TypeVar("Begun")


class Block(NamedTuple):
    """What became of some consecutive images."""

    rows: Tensor  # their numbers, [n]
    x_u8: Tensor  # [n,3,H,W] on the CPU
    manifest: list[Row]


def synthesize_set(task: Task, config: SynthesisConfig) -> Summary:
    """Makes config.out and OUT.manifest.jsonl, a row per image; gives the summary: N, means over the manifest, rate."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"task: {task.name} runs in one process; call it without torchrun")
    check_new_out(config.out, overwrite=True)
    check_pictures_out(config)
    classifier, device = folded(config.load(config.ckpt)), pick_device(config.device)
    precision = decide_precision(config.precision, device, attack_loop([classifier]))
    network = Network(place(classifier, device, precision.precision))
    settings = deciding_of_task(task.name, config, device, precision.precision)
    work = WorkFolder(config.out)
    if isinstance(config, InputFlags):
        check_apart(config.out, config.input)
    make = partial(_made, task, config, network, precision)
    return made_once(work, settings, overwrite=config.overwrite, begin=partial(task.open, config, network), make=make)


def made_once(
    work: WorkFolder,
    settings: dict[str, Any],
    *,
    overwrite: bool,
    begin: Callable[[], Begun],
    make: Callable[[Begun, WorkFolder], Summary],
) -> Summary:
    """What make(begin(), work) puts into the work folder, moved to its place; an equal run's that stands there is kept.

    begin: UserError for what does not fit, before anything is written.
    """
    with exclusive(work.out):
        if done := work.finished(settings, overwrite=overwrite):
            return done | {"already_done": True}
        begun = begin()
        work.claim(settings, overwrite=overwrite)
        if not work.is_assembled:
            try:
                work.finish(make(begun, work))
            except BaseException:
                work.remove()  # nothing in it could be gone on with
                raise
        return work.publish()


def _made(
    task: Task,
    config: SynthesisConfig,
    network: Network,
    precision: PrecisionDecision,
    source: Source,
    work: WorkFolder,
) -> Summary:
    """Makes set, manifest and pictures, the former two in the work folder; gives the summary."""
    n, ball = len(source.names), config.ball(source.ball or task.defaults(max(source.size)))
    block = min(block_size(network.device, max(network.image_size, *source.size), config.batch_size), n)
    grid = Grid(n, config.grid_images)
    new = NewSet(source.targets.numpy(), network.class_names, source.names, source.size)
    started = time.perf_counter()
    with closing(synthesize_blocks(network, source, ball, block, label=task.name, ckpt=config.ckpt)) as blocks:
        means = _write(work.assembled, work.manifest, blocks, new, grid)
    wall_s = time.perf_counter() - started
    if config.grid is not None:
        grid.save(config.grid, source, ball)
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
        **means,
        "wall_s": round(wall_s, 2),
        "images_per_s": round(n / wall_s, 2),
    }


def synthesize_blocks(
    network: Network, source: Source, ball: Ball, block: int, *, label: str, ckpt: str = "the classifier"
) -> Generator[Block]:
    """All images of the source, `block` at a time; progress on stderr under `label`."""
    numbers = torch.arange(len(source.names))
    parts = numbers.split(block)
    with frozen_eval(network), tqdm(total=len(parts) * ball.steps, unit="step", desc=label) as bar:
        for rows in parts:
            bar.set_postfix_str(f"images {int(rows[0])}-{int(rows[-1])} of {len(numbers)}")
            work = source.work(filled(rows, block))
            x = work.start
            for step, x in enumerate(iterates(network, work, ball)):  # noqa: B007  (only the last one is wanted)
                bar.update(step > 0)
            x_u8 = stored(x, work)
            names = [source.names[int(i)] for i in rows]
            with naming(names, ckpt):
                check_finite(x, "gradients")
                measured = measure(network, work, x_u8, ball.norm)
                check_finite(torch.stack([measured[name].float() for name in MEANS], dim=1), "outputs")
            manifest = manifest_rows(measured, names, network.class_names, network.model.precision)
            yield Block(rows, x_u8[: len(rows)].cpu(), manifest)


def _write(out: Path, manifest: Path, blocks: Iterator[Block], new: NewSet, grid: Grid) -> dict[str, float]:
    """Writes set and manifest while the blocks come in; gives the means."""
    sums: Counter[str] = Counter()
    with (
        whole_file(manifest) as unfinished,
        unfinished.open("w", encoding="utf-8") as lines,
        write_new_set(out, new) as add,
    ):
        for block in blocks:
            add(block.x_u8)
            lines.writelines(map(as_line, block.manifest))
            grid.take(*block)
            for row in block.manifest:
                sums.update({name: row[name] for name in MEANS})
    return {name: round(sums[name] / len(new.labels), 4) for name in MEANS}


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
