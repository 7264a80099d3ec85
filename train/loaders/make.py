"""A loader by its name."""

from typing import Literal

import torch

from robust_models.datasets import AnyDataset
from robust_models.errors import UserError
from train.loaders.base import Loader
from train.loaders.resident import ResidentLoader

LoaderName = Literal["resident", "stream", "ffcv"]


def make_loader(
    name: LoaderName,
    data: AnyDataset,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    workers: int | None = None,
    random_crop: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """resident: the set on the device; stream: any set, read by worker processes; ffcv: a .beton, by compiled code.

    All three give the same images in the same order for the same seed. workers: None is one per usable core.
    random_crop: each epoch other boxes of the images as they are stored; not for resident, which keeps one square each.
    """
    shared = {"batch_size": batch_size, "seed": seed, "device": device, "rank": rank, "world": world}
    if name == "resident":
        if random_crop:
            raise UserError(
                "data.random_crop: resident keeps one square of each image; give --data.loader stream or ffcv"
            )
        return ResidentLoader(data.in_memory(), **shared)
    if name == "stream":
        from train.loaders.stream import StreamLoader

        return StreamLoader(data, workers=workers, random_crop=random_crop, **shared)
    from train.loaders.ffcv import FFCVLoader

    return FFCVLoader(data, workers=workers, random_crop=random_crop, **shared)
