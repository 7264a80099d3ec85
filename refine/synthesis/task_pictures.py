"""Pictures of a task's images: some as they began and ended, and a few after each of a dozen steps."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.network import Network
from refine.selection import spread
from refine.synthesis.config import Ball
from refine.synthesis.loop import iterates
from refine.synthesis.task import Source
from refine.work_folder import Shards, WorkFolder
from robust_models.attacks import frozen_eval
from robust_models.grids import save_rows
from robust_models.grids import save_trajectory as save_frames
from robust_models.images import to_u8

_FRAMES = 12  # a run may have hundreds of steps


def save_grid(path: Path, count: int, source: Source, ball: Ball, work: WorkFolder, shards: Shards) -> None:
    """Some finished images, and above each what it was made of, at the size of the former."""
    index = spread(shards.n, count)
    after = torch.cat([work.image(shards, i) for i in index.tolist()])
    before = torch.cat([source.before(row) for row in index.split(1)])
    if before.shape != after.shape:
        before = F.interpolate(before, after.shape[-2:], mode="nearest-exact")
    rows = [(source.shown.before, before), (source.shown.after, after)]
    note = f"{ball.norm} eps {ball.eps:g}, {ball.steps} steps. {source.shown.note}"
    captions = [source.shown.caption(row) for row in work.rows_of(shards, index.tolist())]
    save_rows(path, rows, captions, note=note)


def save_trajectory(path: Path, network: Network, source: Source, ball: Ball, block: int, count: int) -> None:
    """Some images at a dozen of their steps: a row for each step, an animation where path ends in .gif."""
    rows = spread(len(source.names), count)
    steps = spread(ball.steps + 1, _FRAMES).tolist()
    parts = [_frames(network, source, ball, part, set(steps)) for part in rows.split(block)]
    frames = [torch.cat(frame) for frame in zip(*parts, strict=True)]
    save_frames(path, frames, [network.class_names[int(source.targets[row])] for row in rows], steps)


def _frames(network: Network, source: Source, ball: Ball, rows: Tensor, steps: set[int]) -> list[Tensor]:
    """The images at `rows` after each of the steps, uint8 [n,3,H,W] on the CPU."""
    frames: list[Tensor] = []
    with frozen_eval(network):
        for step, x in enumerate(iterates(network, source.work(rows), ball)):
            if step in steps:
                frames.append(to_u8(x).cpu())
    return frames
