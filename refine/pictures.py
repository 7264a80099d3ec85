"""Pictures of a refinement: some images before and after, and a few after each step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from refine.bigroc import trajectory
from refine.config import RefineConfig
from refine.refine_batch import BatchRefiner
from refine.selection import spread
from refine.work_folder import Row, Shards, WorkFolder
from robust_models.grids import difference_row, save_rows, save_trajectory
from robust_models.images import ImageSet, to_float, to_u8


def save_pictures(
    config: RefineConfig, refiner: BatchRefiner, images: ImageSet, work: WorkFolder, shards: Shards
) -> None:
    """--grid and --trajectory, where asked for, from finished shards."""
    if config.grid is not None:
        _save_grid(config.grid, config.grid_images, images, work, shards)
    if config.trajectory is not None:
        _save_trajectory(config.trajectory, config.trajectory_images, refiner, images, work, shards)


def _save_grid(path: Path, count: int, images: ImageSet, work: WorkFolder, shards: Shards) -> None:
    """Images before, after and their difference, with the target's name and its confidence before and after."""
    index = spread(shards.n, count).tolist()
    before = torch.cat([_u8(images.read(i, i + 1)) for i in index])
    after = torch.cat([_u8(work.image(shards, i)) for i in index])
    captions = [
        f"{row['class']}\n{row['confidence_before']:.0%} > {row['confidence_after']:.0%}"
        for row in _rows_at(index, work, shards)
    ]
    save_rows(path, [("before", before), ("refined", after), difference_row(before, after)], captions)


def _save_trajectory(
    path: Path, count: int, refiner: BatchRefiner, images: ImageSet, work: WorkFolder, shards: Shards
) -> None:
    """Images after each step; refined once more, as shards keep the last step only."""
    index = spread(shards.n, count).tolist()
    rows = _rows_at(index, work, shards)
    x = to_float(torch.cat([images.read(i, i + 1) for i in index])).to(refiner.device)
    y = torch.tensor([row["target"] for row in rows], device=refiner.device)
    frames = [to_u8(frame).cpu() for frame in trajectory(refiner.attack, refiner.model, x, y)]
    save_trajectory(path, frames, [row["class"] for row in rows])


def _rows_at(index: Sequence[int], work: WorkFolder, shards: Shards) -> list[Row]:
    wanted = set(index)
    touched = sorted({i // shards.size for i in index})
    numbered = ((shards.part(k).start + j, row) for k in touched for j, row in enumerate(work.rows(k)))
    return [row for i, row in numbered if i in wanted]


def _u8(pixels: Tensor) -> Tensor:
    return to_u8(to_float(pixels))
