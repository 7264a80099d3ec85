"""Whether a judge took part in what it is to judge: a network flatters its own gradients, and those of its kin."""

from robust_models.classifier import Description
from robust_models.errors import UserError
from robust_models.features.efficientnet import PACKAGED
from robust_models.features.extractor import FeatureExtractor

IMAGENET_CLASSES = 1000


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
