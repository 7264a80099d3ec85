"""What --dry-run finds wrong with names of classifiers, networks and devices, before any file is read."""

from pathlib import Path
from typing import Any

import torch

from robust_models.architectures import ACTIVATIONS, build
from robust_models.checkpoints.flags import file_of, split_flags
from robust_models.checkpoints.hub import OPEN_CLIP, HubName, is_hub_name
from robust_models.checkpoints.load import embedded_names, find
from robust_models.checkpoints.published import published
from robust_models.classifier import Normalizer
from robust_models.errors import UserError, none_of


def check_names(config: Any) -> None:
    """UserError, as the command itself would raise it, for the fields that many configs have: ckpt (or several, ckpts),
    init, against, arch, activation, normalize, device. Those that a config lacks, or leaves null, are not checked."""
    given = {name: value for name in _FIELDS if (value := getattr(config, name, None)) is not None}
    for checkpoint in getattr(config, "ckpts", [given["ckpt"]] if "ckpt" in given else []):
        check_classifier(checkpoint, field="ckpt")
    for name in ("init", "against"):
        if name in given:
            check_classifier(given[name], field=name)
    check_reading(config)
    if given.get("device", "auto") != "auto":
        _check_device(given["device"])


_FIELDS = ("ckpt", "init", "against", "device")


def check_inspected(config: Any) -> None:
    """UserError, as `models inspect` and `convert` would raise it, for their file and how it is to be read."""
    check_names(config)
    check_classifier(config.file, field="file")
    if not is_fetched(config.file):
        file_of(config.file)


def check_reading(flags: Any) -> None:
    """UserError for an arch, activation or normalize that there is not, where `flags` has such fields."""
    arch, activation, normalize = (getattr(flags, name, None) for name in ("arch", "activation", "normalize"))
    if activation is not None and activation not in ACTIVATIONS:
        raise UserError(f"activation: {none_of(activation, ACTIVATIONS)}")
    if arch is not None and ":" not in arch:  # a library's network, or anyone's function, is not called here
        with torch.device("meta"):
            build(arch, num_classes=10)
    if normalize is not None:
        Normalizer.parse(normalize)


def check_classifier(checkpoint: str, *, field: str) -> None:
    """UserError where the text can only be a name, and no classifier has it; a file may be there when it is needed."""
    checkpoint, flags = split_flags(checkpoint)
    check_reading(flags)
    path = Path(checkpoint)
    if path.suffix or len(path.parts) > 1 or is_fetched(checkpoint):
        return
    try:
        find(checkpoint)
    except UserError as error:
        raise UserError(f"{field}: {str(error).removeprefix('ckpt: ')}") from error


def is_fetched(name: str) -> bool:
    """Whether a classifier that comes with the package, or is fetched where it is missing, is called so.

    UserError where it can only be a name on the Hugging Face hub, and is not formed like one.
    """
    if is_hub_name(name):
        HubName.parse(split_flags(name)[0])
        return True
    if name.startswith(OPEN_CLIP):
        return True
    return name in embedded_names() or name in published()


def _check_device(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: {name!r} is no device; take auto, cpu, cuda, cuda:1, ...") from error
