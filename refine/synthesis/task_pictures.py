"""Pictures of a task's images: some as they began and ended, and a few after each of a dozen steps."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.network import Network
from refine.selection import spread
from refine.synthesis.config import Ball
from refine.synthesis.loop import iterates
from refine.synthesis.task import Source
from refine.work_folder import Row
from robust_models.attacks import frozen_eval
from robust_models.grids import save_rows
from robust_models.grids import save_trajectory as save_frames
from robust_models.images import to_u8

_FRAMES = 12  # a run may have hundreds of steps


class Grid:
    """Collects, while the blocks pass by, the images that a picture of `count` of n shows."""

    def __init__(self, n: int, count: int) -> None:
        self.rows = spread(n, count)
        self.after: list[Tensor] = []
        self.manifest: list[Row] = []

    def take(self, rows: Tensor, x_u8: Tensor, manifest: Sequence[Row]) -> None:
        """Keeps the wanted ones of the images x_u8 [n,3,H,W] of these consecutive rows, with their manifest rows."""
        for i in (self.rows[(self.rows >= rows[0]) & (self.rows <= rows[-1])] - rows[0]).tolist():
            self.after.append(x_u8[i])
            self.manifest.append(manifest[i])

    def save(self, path: Path, source: Source, ball: Ball) -> None:
        """What each image was made of above what it became, at the size of the latter."""
        after = torch.stack(self.after)
        before = torch.cat([source.before(row) for row in self.rows.split(1)])
        if before.shape != after.shape:
            before = F.interpolate(before, after.shape[-2:], mode="nearest-exact")
        rows = [(source.shown.before, before), (source.shown.after, after)]
        note = f"{ball.norm} eps {ball.eps:g}, {ball.steps} steps. {source.shown.note}"
        save_rows(path, rows, [source.shown.caption(row) for row in self.manifest], note=note)


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
