"""Pictures of a refinement: some images before and after, and a few after each step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from refine.config import RefineConfig
from refine.method import trajectory
from refine.refine_batch import BatchRefiner
from refine.selection import spread
from refine.work_folder import Shards, WorkFolder
from robust_models.grids import difference_row, fitted, save_rows, save_trajectory
from robust_models.images import ImageGroups, to_float, to_u8

CONFIDENCE_NOTE = "Below each image: its target, and the probability that the classifier gives it before > after."
_SQUARE = 192  # pixels


def save_pictures(
    config: RefineConfig, refiner: BatchRefiner, images: ImageGroups, work: WorkFolder, shards: Shards
) -> None:
    """--grid and --trajectory, where asked for, from finished shards."""
    if config.grid is not None:
        attack = refiner.attack
        _save_grid(config.grid, config.grid_images, images, work, shards, attack.norm, attack.eps)
    if config.trajectory is not None:
        _save_trajectory(config.trajectory, config.trajectory_images, refiner, images, work, shards)


def _save_grid(
    path: Path, count: int, images: ImageGroups, work: WorkFolder, shards: Shards, norm: str, eps: float
) -> None:
    """Images before, after and their difference, with the target's name and its confidence before and after."""
    index = spread(shards.n, count).tolist()
    before = _of_one_size([images.read(i, i + 1) for i in index])
    after = _of_one_size([work.image(shards, i) for i in index])
    captions = [
        f"{row['class']}\n{row['confidence_before']:.0%} > {row['confidence_after']:.0%}"
        for row in work.rows_of(shards, index)
    ]
    rows = [("before", before), ("refined", after), difference_row(before, after)]
    save_rows(path, rows, captions, note=f"{norm} eps {eps:g}. {CONFIDENCE_NOTE}")


def _save_trajectory(
    path: Path, count: int, refiner: BatchRefiner, images: ImageGroups, work: WorkFolder, shards: Shards
) -> None:
    """Images after each step; refined once more, as shards keep the last step only."""
    index = spread(shards.n, count).tolist()
    rows = work.rows_of(shards, index)
    y = torch.tensor([row["target"] for row in rows], device=refiner.device)
    ways = [
        trajectory(refiner.attack, refiner.model, to_float(images.read(i, i + 1)).to(refiner.device), y[[k]])
        for k, i in enumerate(index)
    ]
    frames = [_of_one_size([to_u8(x).cpu() for x in points]) for points in zip(*ways, strict=True)]
    save_trajectory(path, frames, [row["class"] for row in rows])


def _of_one_size(parts: Sequence[Tensor]) -> Tensor:
    """Images [1,3,H,W] of any depth as uint8 [n,3,h,w]; those of several sizes, on white squares."""
    shown = [to_u8(to_float(x)) for x in parts]
    if len({x.shape for x in shown}) > 1:
        shown = [to_u8(fitted(to_float(x), _SQUARE)) for x in shown]
    return torch.cat(shown)
