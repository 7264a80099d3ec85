"""What a robust classifier is: network, threat model, attack, checkpoint, images, data."""

from typing import TYPE_CHECKING

from robust_models.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from robust_models.attacks import PGD, input_gradient
    from robust_models.checkpoints import embedded_names, load, save
    from robust_models.classifier import NORMALIZERS, Description, Normalizer, RobustClassifier
    from robust_models.datasets import Dataset, load_dataset
    from robust_models.errors import UserError
    from robust_models.images import ImageSet, open_images, to_float, to_u8, write_images
    from robust_models.threat import NORMS, ThreatModel

__all__ = [
    "NORMALIZERS",
    "NORMS",
    "PGD",
    "Dataset",
    "Description",
    "ImageSet",
    "Normalizer",
    "RobustClassifier",
    "ThreatModel",
    "UserError",
    "embedded_names",
    "input_gradient",
    "load",
    "load_dataset",
    "open_images",
    "save",
    "to_float",
    "to_u8",
    "write_images",
]

__getattr__ = lazy_names(
    __name__,
    {
        "robust_models.attacks": ("PGD", "input_gradient"),
        "robust_models.checkpoints": ("embedded_names", "load", "save"),
        "robust_models.classifier": ("NORMALIZERS", "Description", "Normalizer", "RobustClassifier"),
        "robust_models.datasets": ("Dataset", "load_dataset"),
        "robust_models.errors": ("UserError",),
        "robust_models.images": ("ImageSet", "open_images", "to_float", "to_u8", "write_images"),
        "robust_models.threat": ("NORMS", "ThreatModel"),
    },
)
