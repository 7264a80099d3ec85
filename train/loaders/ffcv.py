"""Batches out of `.beton` files, decoded by FFCV's compiled code; python -m train.loaders.ffcv writes such files.

FFCV only decodes: the order is ours and so is the augmentation, on the device, so that every loader gives the same.
"""

# pyright: reportMissingImports=false
# ffcv is an extra that needs C++ libraries first.

import itertools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_models.datasets import AnyDataset, LazyDataset
from robust_models.datasets.beton import BetonStore
from robust_models.datasets.crops import centre_boxes, random_boxes
from robust_models.errors import UserError
from train.loaders.base import Batch, Loader, pick_workers

_BOXES_AT_ONCE = 1 << 16
INSTALL = (
    "apt-get install -y --no-install-recommends libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv==1.0.2"
)


class FFCVLoader(Loader):
    """workers: threads, None for one per core. random_crop: random boxes of the images, each epoch others.

    Images of the wanted size are copied as they are. Others are cut and resized, by OpenCV here and by Pillow in the
    stream loader: the same boxes, pixels that differ a little.
    """

    def __init__(
        self,
        data: AnyDataset,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        workers: int | None = None,
        random_crop: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(
            len(data), data.source, batch_size=batch_size, seed=seed, device=device, rank=rank, world=world
        )
        if not (isinstance(data, LazyDataset) and isinstance(data.store, BetonStore)):
            raise UserError(
                f"data.loader: ffcv reads .beton files, got {data.source}; make one: "
                "python -m train.loaders.ffcv write --data SOURCE --out FILE.beton"
            )
        self.data, self.store = data, data.store
        self.workers = max(1, pick_workers(workers))
        self.y = data.y
        sizes = np.stack([self.store.samples["height"], self.store.samples["width"]], 1)
        self.cuts = random_crop or not (sizes == data.image_size).all()
        self.random_crop, self.sizes = random_crop, sizes
        self.pipeline = self._pipeline()

    def batches(self, step: int) -> Iterator[Batch]:
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            yield from self._rest_of(epoch, position)
            epoch, position = epoch + 1, 0

    def _rest_of(self, epoch: int, position: int) -> Iterator[Batch]:
        indices = self.order.epoch(epoch)[position:]
        self.pipeline.traversal_order.indices = self.data.index[indices.flatten().numpy()].astype(np.uint64)
        if self.cuts:
            self.pipeline.reader.metadata = self._boxed(epoch)
        threads = torch.get_num_threads()
        batches = iter(self.pipeline)
        try:
            first = next(batches)
            torch.set_num_threads(threads)  # FFCV has set its own for the whole process by now
            for (x_u8,), index in zip(itertools.chain([first], batches), indices, strict=True):
                yield self._kept(x_u8), self.y[index].to(self.device, non_blocking=True)
        finally:
            batches.close()

    def _kept(self, x_u8: Tensor) -> Tensor:
        """[B,S,S,3] in FFCV's ring of buffers -> a tensor of our own [B,3,S,S]."""
        return x_u8.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    def _pipeline(self) -> Any:
        ffcv = import_ffcv()
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.transforms import ToDevice, ToTensor

        operations = [SimpleRGBImageDecoder(), ToTensor()]
        if self.cuts:
            from train.loaders.ffcv_crops import BoxDecoder

            operations[0] = BoxDecoder(self.data.image_size)
        if self.device.type == "cuda":
            operations.append(ToDevice(self.device, non_blocking=True))
        threads = torch.get_num_threads()
        pipeline = ffcv.loader.Loader(
            str(self.store.path),
            batch_size=self.batch_size // self.order.world,
            num_workers=self.workers,
            order=ffcv.loader.OrderOption.SEQUENTIAL,  # of the indices that each epoch sets
            indices=np.arange(self.steps_per_epoch * (self.batch_size // self.order.world)),
            pipelines={name: operations if name == self.store.image_field else None for name in self.store.field_names},
        )
        torch.set_num_threads(threads)
        return pipeline

    def _boxed(self, epoch: int) -> dict[str, np.ndarray]:
        """What FFCV hands to the decoder, with the box that each image has in this epoch."""
        from train.loaders.ffcv_crops import boxed

        if self.random_crop:
            parts = np.array_split(np.arange(len(self.sizes)), -(-len(self.sizes) // _BOXES_AT_ONCE))
            boxes = np.concatenate([random_boxes(self.sizes[part], self.seed, epoch, part) for part in parts])
        else:
            boxes = centre_boxes(self.sizes, self.data.image_size, self.data.resize_to)
        return {f"f{self.store.field_names.index(self.store.image_field)}": boxed(self.store.samples, boxes)}


def import_ffcv() -> Any:
    """The package; UserError with the steps to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own, about distutils
            import ffcv.loader
    except ImportError as error:
        raise UserError(f"data.loader: ffcv cannot be imported here ({error}); install it: {INSTALL}") from error
    return ffcv


if __name__ == "__main__":
    from train.loaders.ffcv_cli import main

    sys.exit(main())
