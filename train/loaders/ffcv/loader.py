"""Batches out of `.beton` files, decoded by FFCV's compiled code.

FFCV only decodes: the order is ours and so is the augmentation, on the device, so that every loader gives the same.
"""

# pyright: reportMissingImports=false
# ffcv is an extra that needs C++ libraries first.

import itertools
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
from train.loaders.base import Batch, Loader, LoaderSettings, pick_workers

_BOXES_AT_ONCE = 1 << 16
INSTALL = (
    "apt-get install -y --no-install-recommends libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv==1.0.2"
)


class FFCVLoader(Loader):
    """settings.workers: threads.

    Images of the wanted size are copied as they are. Others are cut and resized, by OpenCV here and by Pillow in the
    stream loader: the same boxes, pixels that differ a little.
    """

    def __init__(self, data: AnyDataset, settings: LoaderSettings) -> None:
        super().__init__(data, settings)
        if not (isinstance(data, LazyDataset) and isinstance(data.store, BetonStore)):
            raise UserError(
                f"data.loader: ffcv reads .beton files, got {data.source}; make one: "
                "python -m train.loaders.ffcv write --data SOURCE --out FILE.beton"
            )
        self.data, self.store = data, data.store
        self.workers = max(1, pick_workers(settings.workers))
        self.y = data.y
        sizes = np.stack([self.store.samples["height"], self.store.samples["width"]], 1)
        self.cuts = settings.random_crop or not (sizes == data.image_size).all()
        self.sizes = sizes
        self.pipeline = self._pipeline()

    def batches(self, step: int) -> Iterator[Batch]:
        """See Loader: decoded by FFCV's threads."""
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
            from train.loaders.ffcv.crops import BoxDecoder

            operations[0] = BoxDecoder(self.data.image_size)
        if self.device.type == "cuda":
            operations.append(ToDevice(self.device, non_blocking=True))
        threads = torch.get_num_threads()
        pipeline = ffcv.loader.Loader(
            str(self.store.path),
            batch_size=self.settings.batch_size // self.order.world,
            num_workers=self.workers,
            order=ffcv.loader.OrderOption.SEQUENTIAL,  # of the indices that each epoch sets
            indices=np.arange(self.steps_per_epoch * (self.settings.batch_size // self.order.world)),
            pipelines={name: operations if name == self.store.image_field else None for name in self.store.field_names},
        )
        torch.set_num_threads(threads)
        return pipeline

    def _boxed(self, epoch: int) -> dict[str, np.ndarray]:
        """What FFCV hands to the decoder, with the box that each image has in this epoch."""
        from train.loaders.ffcv.crops import boxed

        if self.settings.random_crop:
            parts = np.array_split(np.arange(len(self.sizes)), -(-len(self.sizes) // _BOXES_AT_ONCE))
            boxes = np.concatenate([random_boxes(self.sizes[part], self.settings.seed, epoch, part) for part in parts])
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
