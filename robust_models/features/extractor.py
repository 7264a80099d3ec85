"""What a feature space is, that of a classifier, how a name opens one, and what fits into it."""

import difflib
import re
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from robust_models.checkpoints.checks import check_classifier
from robust_models.checkpoints.flags import Source, load_classifier, split_flags
from robust_models.errors import UserError, none_of
from robust_models.features.protocols import PROTOCOLS, same_pixels
from robust_models.images import ImageSet, to_float
from robust_models.metrics import FrechetStatistics, StoredStatistics
from robust_models.runtime.device import exact_fp32, place

TRANSFORMERS = ("dinov2", "clip")
KINDS = ("inception", "efficientnet", *TRANSFORMERS, "classifier:")  # how the name of a feature space begins


class FeatureExtractor(Protocol):
    """features = extractor(x_u8): uint8 [n,3,H,W] on any device -> float32 [n,dim] on the extractor's device."""

    name: str  # as --features has it
    dim: int
    protocol: str  # how pixels reach the network
    image_size: int | None  # the one size it takes, pixels; None: it resizes
    source: Source  # the network's file
    is_fid: bool  # its Frechet distance is the FID
    spatial_dim: int | None  # of the sFID's features; None where it has none
    num_classes: int | None  # of its logits; None where it has no classifier on its features

    def __call__(self, x_u8: Tensor) -> Tensor: ...

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features, the sFID's features [n,spatial_dim]) in one pass of the network."""
        ...

    def logits(self, features: Tensor) -> Tensor | None:
        """The network's logits [n,num_classes] for its features [n,dim]; None where it has no classifier on them."""
        ...


class ClassifierFeatures:
    """FeatureExtractor of the classifier called or stored at `checkpoint`; fp32 whatever the hardware.

    What its file does not state may follow the name: "FILE,normalize=cifar10,image_size=64" (see CheckpointFlags).
    """

    is_fid = False
    spatial_dim: int | None = None

    def __init__(self, checkpoint: str, *, device: torch.device) -> None:
        file, flags = split_flags(checkpoint)
        model, self.source = load_classifier(file, flags)
        given = checkpoint.removeprefix(file)  # the features depend on it as on the pixels
        self.protocol = f"pixels/255{given}"  # no resizing: the images have the classifier's size
        self.name = f"classifier:{checkpoint}"
        self.dim = model.head.in_features
        self.num_classes: int | None = len(model.class_names)
        self.class_names = model.class_names
        self.image_size: int | None = model.image_size
        self._model = place(model, device, "fp32")
        self._device = device

    def __call__(self, x_u8: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            return self._model.features(to_float(x_u8.to(self._device)))

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features, None): a classifier has no features of the sFID."""
        return self(x_u8), None

    def logits(self, features: Tensor) -> Tensor:
        """Those of its own head, float32 [n,num_classes]."""
        with torch.no_grad(), exact_fp32():
            return self._model.head(features.to(self._device))


def open_features(
    name: str,
    *,
    weights: Path | str | None = None,
    protocol: str | None = None,
    device: torch.device | str = "cpu",
) -> FeatureExtractor:
    """The feature space called `name`.

    "classifier:NAME_OR_FILE", what the file does not state after it (",normalize=cifar10");
    "inception" (2048-d, pool3), "inception-768", "inception-192" or "inception-64";
    "efficientnet-lite0-128" or "efficientnet-lite1-128" (1280-d, pooled; weights from a Python package);
    "dinov2" (ViT-L/14, class token) or "clip" (ViT-L/14 at 336, the image's embedding), ":FILE" after either.
    weights: the Inception network's file or URL; None: torch's hub cache, else a download. protocol: how pixels reach
    Inception (features/protocols.py); None: pytorch-fid. UserError for another name or protocol, for a missing package,
    for a missing or foreign weights file.
    """
    device = torch.device(device)
    kind, _, checkpoint = name.partition(":")
    if kind == "classifier" and checkpoint:
        _check_for_inception(name, weights, protocol)
        return ClassifierFeatures(checkpoint, device=device)

    check_features(name, weights=weights, protocol=protocol)
    if kind in TRANSFORMERS:
        from robust_models.features.vision_transformers import TransformerFeatures

        return TransformerFeatures(kind, device=device, weights=Path(checkpoint) if checkpoint else None)
    if name.startswith("efficientnet"):
        from robust_models.features.efficientnet import EfficientNetFeatures

        return EfficientNetFeatures(name, device=device)

    from robust_models.features.inception_features import InceptionFeatures

    return InceptionFeatures(name, weights, protocol or "pytorch-fid", device=device)


def check_features(name: str, *, weights: Path | str | None = None, protocol: str | None = None) -> None:
    """UserError for what open_features refuses without opening anything; a classifier's name is checked too."""
    kind, _, checkpoint = name.partition(":")
    _check_for_inception(name, weights, protocol)
    if kind == "classifier" and checkpoint:
        check_classifier(checkpoint, field="features")
        return

    names = feature_spaces()
    if name not in names and not (kind in TRANSFORMERS and checkpoint):
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"features: {name!r} is none of classifier:NAME_OR_FILE, {', '.join(names)}{hint}")
    if protocol is not None and protocol not in PROTOCOLS:
        raise UserError(f"protocol: {none_of(protocol, PROTOCOLS)}")


def feature_spaces() -> tuple[str, ...]:
    """All names but those of classifiers."""
    from robust_models.features.efficientnet import PACKAGED
    from robust_models.features.inception_network import DEPTHS

    return (*DEPTHS, *PACKAGED, *TRANSFORMERS)


def is_feature_space(name: str) -> bool:
    """Whether open_features takes the name as it stands; else it is a classifier's, without "classifier:"."""
    return name in feature_spaces() or name.partition(":")[0] in ("classifier", *TRANSFORMERS)


def split_spaces(text: str) -> list[str]:
    """ "inception-768,classifier:FILE,normalize=cifar10" as its feature spaces: a comma before a space's name parts."""
    return [part.strip() for part in re.split(rf",\s*(?={'|'.join(KINDS)})", text)]


def each_space(text: str, *, weights: Path | str | None, protocol: str | None) -> list[tuple[str, dict[str, Any]]]:
    """(name, settings) of each feature space in the text; those of the Inception network go to it alone.

    UserError where there are settings of it and it is none of the spaces.
    """
    names = split_spaces(text)
    if not any(name.startswith("inception") for name in names):
        _check_for_inception(text, weights, protocol)
    settings = {"weights": weights, "protocol": protocol}
    return [(name, settings if name.startswith("inception") else {}) for name in names]


def _check_for_inception(name: str, weights: Path | str | None, protocol: str | None) -> None:
    """UserError where settings of the Inception network are given for another one."""
    for field, value in (("weights", weights), ("protocol", protocol)):
        if value is not None and not name.startswith("inception"):
            raise UserError(f"{field}: belongs to the Inception network; --features {name} has its own")


def image_statistics(images: ImageSet, extractor: FeatureExtractor, batch_size: int = 100) -> FrechetStatistics:
    """Float64 statistics of the features of every image; memory does not grow with their number."""
    statistics = FrechetStatistics(extractor.dim)
    with tqdm(total=len(images), desc=images.path.name, unit="img", mininterval=0.5) as bar:
        for part, x_u8 in images.batches(batch_size):
            statistics.update(extractor(x_u8))
            bar.update(part.stop - part.start)
    return statistics


def check_images(images: ImageSet, extractor: FeatureExtractor) -> None:
    """UserError where the images are not of the size that the extractor takes, or fewer than 2."""
    height, width = images.size
    side = extractor.image_size
    if side is not None and (height, width) != (side, side):
        raise UserError(f"{images.path}: images are {width}x{height}; {extractor.name} takes {side}x{side}")
    if len(images) < 2:
        raise UserError(f"{images.path}: 1 image; a Frechet distance needs at least 2 in each set")


def check_stored(stored: StoredStatistics, extractor: FeatureExtractor) -> None:
    """UserError for statistics of other features: they would give a number all the same, which must not be shown."""
    classifiers = extractor.name.startswith("classifier:") and (stored.features or "").startswith("classifier:")
    same_file = stored.sha256 == extractor.source.sha256
    # A classifier is its file, whatever path it had; Inception's files hold one network, whole or in part.
    alike = same_file if classifiers and stored.sha256 else stored.features in (None, extractor.name)
    if not alike:
        other = " of another file" if stored.features == extractor.name else ""
        raise UserError(f"{stored.path}: statistics of {stored.features}{other}, but --features is {extractor.name}")
    alike = stored.protocol in (None, extractor.protocol) or same_pixels(stored.protocol, extractor.protocol)
    if not alike:
        raise UserError(f"{stored.path}: statistics of protocol {stored.protocol}, but this is {extractor.protocol}")
    if len(stored.mean) != extractor.dim:
        raise UserError(
            f"{stored.path}: statistics of {len(stored.mean)} features; {extractor.name} has {extractor.dim}"
        )
