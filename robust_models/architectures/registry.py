"""From an architecture's name to a network: our CIFAR families, torchvision's, timm's, or any function by its path."""

import difflib
import importlib
import re
from functools import partial
from typing import Any

from torch import nn

from robust_models.architectures.families import EXAMPLES, FAMILIES
from robust_models.architectures.resnet import Activation
from robust_models.errors import UserError

ACTIVATIONS: dict[str, Activation] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "softplus": nn.Softplus,
}


def build(arch: str, *, num_classes: int, activation: str = "relu", options: dict[str, Any] | None = None) -> nn.Module:
    """A freshly initialised network, pixels [N,3,H,W] (normalised) -> logits [N,num_classes].

    Ours are for small images. W is the width of the first stage, the next ones double it:

    - resnet10|18|34|50|101|152[_wW], W 64 (MadryLab robustness: resnet18wide is resnet18_w320, ResNet18Thin is _w48),
      and ResNeXt resnextDEPTH_GROUPSxWIDTHd;
    - preact_resnet10|18|34|50|101|152[_wW][_nolastbn][_xshortcut], W 64; nolastbn: no batch norm before the head;
      xshortcut: projections take x, not act(bn(x));
    - wide_resnet_DEPTH_WIDEN, or wide_resnet_DEPTH_wW1_W2_W3 by the widths of the stages;
    - dm_wide_resnet_..., dm_preact_resnet18|34: DeepMind's (Gowal et al. 2020, arXiv:2010.03593), with
      TensorFlow's padding; the latter projects x with 3x3 convolutions;
    - vgg11|13|16|19 (with batch norms), densenet121|161|169|201[_kGROWTH], inception_v3.

    Of libraries: "torchvision:NAME", "timm:NAME", "transformers:NAME", and "package.module:function" (called with
    num_classes=...); options are further keyword arguments for it, the activation is its own. Raises UserError for any
    other name, and for an activation or options that the architecture would not use.
    """
    if ":" in arch:
        if activation != "relu":
            raise UserError(f"activation: {activation!r} cannot be chosen for {arch}, which brings its own")
        return _of_library(arch, num_classes, options or {})
    if options:
        raise UserError(f"options: {', '.join(options)} mean nothing to {arch}; only networks of libraries take any")
    if activation not in ACTIVATIONS:
        raise UserError(f"activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
    for pattern, family in FAMILIES.items():
        if match := re.fullmatch(pattern, arch, re.ASCII):
            return family(*match.groups(), num_classes=num_classes, act=ACTIVATIONS[activation])
    near = difflib.get_close_matches(arch, EXAMPLES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"arch: {arch!r} is not known{hint} Known: {', '.join(EXAMPLES)} (other depths and widths likewise), "
        f"torchvision:NAME, timm:NAME, transformers:NAME, package.module:function"
    )


def _of_library(arch: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    library, name = arch.split(":", 1)
    if library == "program":
        raise UserError(f"arch: {arch!r} is a file of code, which nothing else can build; load the file itself")
    try:
        if library == "torchvision":
            from torchvision.models import get_model

            slow_start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return get_model(name, weights=None, num_classes=num_classes, **slow_start, **options)
        if library == "timm":
            if ":" in name:
                raise UserError(f"arch: {arch!r} names a model to download; give timm:NAME and the file as --ckpt")
            create = importlib.import_module("timm").create_model
            return create(name, pretrained=False, num_classes=num_classes, **options)
        if library == "transformers":
            from robust_models.architectures import huggingface

            return huggingface.build(name, options, num_classes)
        return getattr(importlib.import_module(library), name)(num_classes=num_classes, **options)
    except UserError:
        raise
    except (ImportError, AttributeError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"arch: {arch!r} cannot be built ({type(error).__name__}: {error})") from error
