"""Where batches come from: three loaders that give the same images in the same order for the same seed."""

from typing import Literal

from robust_models.datasets import AnyDataset
from robust_models.errors import UserError
from train.loaders.base import Loader, LoaderSettings, ResidentLoader

LoaderName = Literal["resident", "stream", "ffcv"]


def make_loader(name: LoaderName, data: AnyDataset, settings: LoaderSettings) -> Loader:
    """resident: the set on the device; stream: any set, read by worker processes; ffcv: a .beton, by compiled code.

    UserError for settings that do not fit: resident has no random crops, as it keeps one square of each image.
    """
    if name == "resident":
        if settings.random_crop:
            raise UserError(
                "data.random_crop: resident keeps one square of each image; give --data.loader stream or ffcv"
            )
        return ResidentLoader(data, settings)
    if name == "stream":
        from train.loaders.stream import StreamLoader

        return StreamLoader(data, settings)
    from train.loaders.ffcv.loader import FFCVLoader

    return FFCVLoader(data, settings)
