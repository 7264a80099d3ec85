"""MadryLab robustness 1.2.1.post2 builds AttackerModels and saves them as its trainer does: python -m ... OUT [NAME]"""

import sys
import types
from pathlib import Path

import torch

from tests.oracles.lively import lively, two_images

# The package was written for torchvision < 0.11.
moved = types.ModuleType("torchvision.models.utils")
moved.load_state_dict_from_url = torch.hub.load_state_dict_from_url
sys.modules[moved.__name__] = moved

import dill  # noqa: E402
from cox.utils import Parameters  # noqa: E402
from robustness import attacker, cifar_models, datasets, train  # noqa: E402

ARCHS = ("resnet18", "resnet50", "vgg11", "vgg19", "densenet121", "inceptionv3")
CIFAR_X, IMAGENET_X = two_images(32), two_images(64)


def networks():
    cifar, imagenet = datasets.CIFAR(), datasets.RestrictedImageNet("")
    for arch in ARCHS:
        yield arch, cifar.get_model(arch, False), cifar, CIFAR_X
    # ResNet18Thin passes wd= where its ResNet has wm=, and cannot be called.
    thin = cifar_models.resnet.ResNet(cifar_models.resnet.BasicBlock, [2, 2, 2, 2], wm=0.75)
    yield "resnet18thin", thin, cifar, CIFAR_X
    yield "imagenet_resnet18", imagenet.get_model("resnet18", False), imagenet, IMAGENET_X


def wide():
    cifar = datasets.CIFAR()
    yield "resnet18wide", cifar.get_model("resnet18wide", False), cifar, CIFAR_X


def save(model: torch.nn.Module, path: Path) -> None:
    """What train.train_model puts into a file after epoch 150."""
    recipe = Parameters({"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "step_lr": 50, "step_lr_gamma": 0.1})
    recipe.mixed_precision, recipe.custom_lr_multiplier, recipe.epochs = False, None, 150
    optimizer, schedule = train.make_optimizer_and_schedule(recipe, model, None, None)
    content = {
        "model": torch.nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule and schedule.state_dict(),
        "epoch": 150,
        "amp": None,
        "nat_prec1": torch.tensor(90.83),
    }
    torch.save(content, path, pickle_module=dill)


if __name__ == "__main__":
    out, expected = Path(sys.argv[1]), {}
    torch.manual_seed(0)
    for name, network, dataset, x in wide() if "wide" in sys.argv[2:] else networks():
        model = lively(attacker.AttackerModel(network, dataset))
        save(model, out / f"{name}.pt")
        with torch.no_grad():
            expected[name], _ = model(x)
    torch.save({"x": CIFAR_X, "imagenet_x": IMAGENET_X, **expected}, out / "expected.pt")
