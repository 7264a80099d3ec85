"""CIFAR-10 and CIFAR-100, downloaded with checksum by torchvision."""

import torch

from robust_models.datasets.dataset import Dataset
from robust_models.datasets.folders import Split
from robust_models.errors import UserError
from robust_models.labels import CIFAR10_CLASSES


def cifar(name: str, root: str, split: Split) -> Dataset:
    """ "cifar10" or "cifar100" from `root`, where it is put if it is missing."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, archive = {
        "cifar10": (CIFAR10, "cifar-10-python.tar.gz"),
        "cifar100": (CIFAR100, "cifar-100-python.tar.gz"),
    }[name]
    try:
        data = kind(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name}: not under {root} and the download failed ({error}); "
            f"put {archive} there, or give an .npz or a folder as --data.path"
        ) from error
    x_u8 = torch.from_numpy(data.data.transpose(0, 3, 1, 2).copy())
    class_names = CIFAR10_CLASSES if name == "cifar10" else tuple(data.classes)
    return Dataset(x_u8, torch.tensor(data.targets), class_names, f"{name} {split}")
