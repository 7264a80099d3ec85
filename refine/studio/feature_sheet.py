"""The features of the classifier that go best with a class, each with the images that excite it most."""

from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.network import Network
from refine.studio.config import StudioConfig
from refine.studio.runs import Message, bytes_message, json_message, pixels_of
from refine.synthesis.feature_statistics import FeatureStatistics
from refine.synthesis.tasks.features import FeaturesConfig, count_features
from robust_models.errors import UserError
from robust_models.images import ImageSet, open_images, to_float, to_u8
from robust_models.labels import CIFAR10_CLASSES
from robust_models.runtime.files import PRETRAINED

TEST_IMAGES = PRETRAINED / "cifar10-test-500.npz"
THUMBNAIL = 64  # pixels at most
IMAGES = 4  # for each feature
MOST_FEATURES = 48  # at once
_SHOWN_CLASSES = 2


class FeatureSheet:
    """What a set's images say about the features of a classifier; counted when it is first asked for."""

    def __init__(self, config: StudioConfig, network: Network) -> None:
        self._config, self._network = config, network

    @cached_property
    def images(self) -> ImageSet:
        """UserError where there are none to show."""
        if self._config.images is not None:
            return open_images(self._config.images)
        if self._network.class_names == CIFAR10_CLASSES:
            return open_images(TEST_IMAGES)
        raise UserError("features: start the studio with --images SET to see what excites them")

    @property
    def count(self) -> int:
        """How many features the classifier has; 0 where it has none that can be painted."""
        try:
            return self._network.model.head.in_features
        except UserError:
            return 0

    @cached_property
    def _statistics(self) -> FeatureStatistics:
        names = self.images.class_names
        same = self.images.labels is not None and names is not None and set(names) <= set(self._network.class_names)
        bundled = self._config.images is None
        counted = FeaturesConfig(
            ckpt=self._config.ckpt,
            input=Path(self.images.path),
            out=Path("features.png"),
            images=IMAGES,
            targets="given" if same or bundled else "pseudo",
        )
        return count_features(counted, self.images, self._network)

    def of_class(self, label: int | None, feature: int | None, count: int) -> Generator[Message]:
        """Of the class, the features most tied to it; or the one feature. JSON, then the thumbnails' pixels."""
        if not self.count:
            raise UserError("features: this classifier has none to paint with; choose a class instead")
        if feature is not None and not 0 <= feature < self.count:
            raise UserError(
                f"feature: {feature} is out of range; this classifier has {self.count} (0 to {self.count - 1})"
            )
        correlation = self._statistics.correlation()
        if feature is None:
            assert label is not None
            chosen = correlation[label].argsort(descending=True, stable=True)[:count].tolist()
        else:
            chosen = [feature]
        numbers = self._statistics.images[:, chosen].T  # [features,images]
        thumbnails = self._thumbnails(numbers.flatten())
        yield json_message(
            features=[self._said(k, correlation) for k in chosen],
            images=numbers.shape[1],
            height=thumbnails.shape[2],
            width=thumbnails.shape[3],
        )
        yield bytes_message(b"".join(map(pixels_of, thumbnails)))
        yield json_message(done=True)

    def _said(self, k: int, correlation: Tensor) -> dict[str, Any]:
        best = correlation[:, k].argsort(descending=True, stable=True)[:_SHOWN_CLASSES].tolist()
        return {
            "feature": k,
            "classes": [[self._network.class_names[c], round(float(correlation[c, k]), 2)] for c in best],
        }

    def _thumbnails(self, numbers: Tensor) -> Tensor:
        """uint8 [n,3,h,w]."""
        unique, where = numbers.unique(return_inverse=True)
        small = torch.cat([self._small(self.images.read(int(i), int(i) + 1)) for i in unique])
        return small[where]

    @staticmethod
    def _small(pixels: Tensor) -> Tensor:
        x = to_float(pixels)
        scale = THUMBNAIL / max(x.shape[-2:])
        if scale >= 1:
            return to_u8(x)
        size = [max(1, round(side * scale)) for side in x.shape[-2:]]
        return to_u8(F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False))
