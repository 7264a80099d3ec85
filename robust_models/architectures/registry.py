"""From an architecture's name to a network: our CIFAR families, torchvision's, timm's, or any function by its path."""

import difflib
import importlib
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from robust_models.architectures.preact_resnet import PreActResNet, wide_resnet
from robust_models.architectures.resnet import Activation, BasicBlock, Bottleneck, ResNet
from robust_models.errors import UserError

ACTIVATIONS: dict[str, Activation] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "softplus": nn.Softplus,
}

_PREACT_DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
}
_EXAMPLES = (*_RESNETS, "preact_resnet18", "preact_resnet10_w32", "wide_resnet_28_10", "wide_resnet_34_10")


def build(arch: str, *, num_classes: int, activation: str = "relu") -> nn.Module:
    """A freshly initialised network, pixels [N,3,H,W] (normalised) -> logits [N,num_classes].

    arch: resnet18|34|50|101|152 (CIFAR stem), preact_resnet10|18|34[_wWIDTH], wide_resnet_DEPTH_WIDEN,
    "torchvision:NAME", "timm:NAME", or "package.module:function" (called with num_classes=...). Raises UserError for
    any other name.
    """
    if ":" in arch:
        return _foreign(arch, num_classes)
    if activation not in ACTIVATIONS:
        raise UserError(f"activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
    act = ACTIVATIONS[activation]
    if arch in _RESNETS:
        return _RESNETS[arch](num_classes=num_classes, act=act)
    if match := re.fullmatch(r"preact_resnet(10|18|34)(?:_w(\d+))?", arch):
        width = int(match[2] or 64)
        widths = (width, 2 * width, 4 * width, 8 * width)
        return PreActResNet(width, widths, _PREACT_DEPTHS[int(match[1])], num_classes=num_classes, act=act)
    if match := re.fullmatch(r"wide_resnet_(\d+)_(\d+)", arch):
        return wide_resnet(int(match[1]), int(match[2]), num_classes=num_classes, act=act)
    near = difflib.get_close_matches(arch, _EXAMPLES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"arch: {arch!r} is not known{hint} Known: {', '.join(_EXAMPLES)} (other depths and widths likewise), "
        f"torchvision:NAME, timm:NAME, package.module:function"
    )


def _foreign(arch: str, num_classes: int) -> nn.Module:
    library, name = arch.split(":", 1)
    try:
        if library == "torchvision":
            from torchvision.models import get_model

            return get_model(name, weights=None, num_classes=num_classes)
        if library == "timm":
            return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=num_classes)
        return getattr(importlib.import_module(library), name)(num_classes=num_classes)
    except (ImportError, AttributeError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"arch: {arch!r} cannot be built ({type(error).__name__}: {error})") from error
