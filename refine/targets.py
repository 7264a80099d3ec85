"""Which class each image is refined towards."""

import torch
from torch import Tensor

from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.images import ImageSet
from robust_models.labels import fit_labels


def given_targets(images: ImageSet, model: RobustClassifier) -> Tensor:
    """The set's own labels as indices into the model's classes, int64 [N]."""
    if images.labels is None:
        raise UserError(
            f"targets: given, but {images.path} has no labels (an .npz carries them in arr_1, a folder as class "
            f"subfolders); pass --targets pseudo"
        )
    index = fit_labels(images.labels, images.class_names, model.class_names, source=f"{images.path} (--targets given)")
    return torch.from_numpy(index)
