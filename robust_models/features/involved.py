"""Whether a judge took part in what it is to judge: a network flatters its own gradients, and those of its kin."""

from collections.abc import Sequence
from importlib.util import find_spec

from robust_models.classifier import Description
from robust_models.errors import UserError
from robust_models.features.efficientnet import PACKAGED, find_weights
from robust_models.features.extractor import FeatureExtractor
from robust_models.features.inception_weights import cached_weights

IMAGENET_CLASSES = 1000
SECOND = "efficientnet-lite0-128"
NO_JUDGE = f"neither Inception's weights in torch's hub cache nor {SECOND}'s package: {PACKAGED[SECOND].install}"


def judges_at_hand(refiners: Sequence[Description], *, weights: str | None = None) -> tuple[str, ...]:
    """Feature spaces on this machine that may judge what these classifiers refine, the one to go by first.

    weights: Inception's, where they are not in torch's hub cache.
    """
    there = weights is not None or cached_weights(first_part=True) is not None
    inception = there and find_spec("torch_fidelity") is not None
    found = ["inception-768"] if inception else []
    if not any(map(_kin, refiners)):
        try:
            find_weights(SECOND)
        except UserError:
            pass
        else:
            found.append(SECOND)
    return tuple(found)


def check_uninvolved(judge: FeatureExtractor, name: str, sha256: str, refiner: Description) -> None:
    """UserError where the judge is the classifier that refines (by its file's sha256), or is fooled by its kind."""
    if judge.source.sha256 == sha256:
        raise UserError(
            f"judge: {judge.name} is the classifier that refines ({name}), which would flatter its own work; "
            "take another"
        )
    if judge.name in PACKAGED and (why := _kin(refiner)):
        raise UserError(
            f"judge: {judge.name} is an ImageNet classifier, and {name} {why}, whose gradients fool it; take inception "
            "or dinov2"
        )


def _kin(refiner: Description) -> str:
    """Why gradients of the refiner are those of EfficientNet-Lite's kind; "" where they are not."""
    if refiner.num_classes >= IMAGENET_CLASSES:
        return f"is one too ({refiner.num_classes} classes)"
    return "is a network of timm" if refiner.arch.startswith("timm:") else ""
