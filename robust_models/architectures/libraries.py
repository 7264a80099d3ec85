"""Networks that are not ours: torchvision's, timm's, transformers', and whatever a person's own function builds."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from robust_models.architectures.clip import ZeroShot
from robust_models.architectures.conv_stem import replace_stem
from robust_models.architectures.fastai import learner
from robust_models.errors import UserError

LIBRARIES = ("torchvision", "timm", "transformers", "open_clip")

# What people call the number of classes in their own functions.
CLASS_COUNTS = ("num_classes", "n_classes", "nb_classes", "num_class", "nclasses", "nclass", "classes", "num_labels")


def build(arch: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """The network called "torchvision:NAME", "timm:NAME", "transformers:NAME", "open_clip:NAME" (its image encoder with
    a zero-shot head) or "package.module:function".

    options: further keyword arguments of its builder, and what replaces parts of its network: conv_stem (of timm's ViTs
    and ConvNeXts, see replace_stem) and fastai_head (of torchvision's ResNets, see learner). UserError where it is not
    there or does not build.
    """
    options = dict(options)
    library, name = arch.split(":", 1)
    if library == "program":
        raise UserError(f"arch: {arch!r} is a file of code, which nothing else can build; load the file itself")
    try:
        if library == "torchvision":
            from torchvision.models import get_model

            fastai_head = options.pop("fastai_head", None)
            slow_start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            network = get_model(name, weights=None, num_classes=num_classes, **slow_start, **options)
            return network if fastai_head is None else learner(network, num_classes, fastai_head)
        if library == "timm":
            if ":" in name:
                raise UserError(f"arch: {arch!r} names a model to download; give timm:NAME and the file as --ckpt")
            conv_stem = options.pop("conv_stem", None)
            create = importlib.import_module("timm").create_model
            network = create(name, pretrained=False, num_classes=num_classes, **options)
            return network if conv_stem is None else replace_stem(network, conv_stem)
        if library == "transformers":
            from robust_models.architectures import huggingface

            return huggingface.build(name, options, num_classes)
        if library == "open_clip":
            return _zero_shot(name, num_classes)
        function = function_of(arch)
        network = function(**class_count_argument(function, num_classes), **options)
    except UserError:
        raise
    except (ImportError, AttributeError, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"arch: {arch!r} cannot be built ({type(error).__name__}: {error})") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"arch: {arch!r} gives a {type(network).__name__}, expected a torch.nn.Module")
    return network


def _zero_shot(name: str, num_classes: int) -> nn.Module:
    model = importlib.import_module("open_clip").create_model(name, load_weights=False, pretrained_text=False)
    size = model.visual.image_size
    with torch.no_grad():
        embedding = model.visual.eval()(torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size))).shape[1]
    return ZeroShot(model.visual, embedding, num_classes)


def is_function(arch: str) -> bool:
    """Whether the architecture is "package.module:function"."""
    library, colon, _ = arch.partition(":")
    return bool(colon) and library not in (*LIBRARIES, "program")


def function_of(arch: str) -> Callable[..., Any]:
    """The function called "package.module:function". ImportError or AttributeError where it is not there."""
    module, _, name = arch.partition(":")
    return getattr(importlib.import_module(module), name)


def class_count_argument(function: Callable[..., Any], num_classes: int) -> dict[str, int]:
    """The keyword argument by which a function of other people takes the number of classes; {} where it takes none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature to be had, as of functions in C
        return {"num_classes": num_classes}
    positional_only = {name for name, each in parameters.items() if each.kind is each.POSITIONAL_ONLY}
    named = next((name for name in CLASS_COUNTS if name in parameters and name not in positional_only), None)
    return {named: num_classes} if named else {}
