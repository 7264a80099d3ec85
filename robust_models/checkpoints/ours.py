"""Safetensors files, and the description that ours carry in their metadata."""

import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from robust_models.checkpoints.save import FORMAT_VERSION
from robust_models.classifier import Description, Normalizer
from robust_models.errors import UserError
from robust_models.threat import ThreatModel


def is_safetensors(path: Path) -> bool:
    """By the first bytes: the size of a JSON header, eight bytes, then the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. UserError where it is broken."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"ckpt: {path} is not a readable safetensors file ({error})") from error


def read_description(text: str, path: Path) -> Description:
    """The description in the metadata entry "bigroc". UserError where it is of a newer version or broken."""
    try:
        entries = json.loads(text)
        version = entries.pop("version", 0)
        if version > FORMAT_VERSION:
            raise UserError(f"ckpt: {path} has format version {version}, newer than {FORMAT_VERSION}; update bigroc")
        normalizer, threat = entries.pop("normalizer"), entries.pop("threat_model")
        description = Description(**{**entries, "class_names": tuple(entries["class_names"])})
        return replace(
            description,
            normalizer=Normalizer(tuple(normalizer["mean"]), tuple(normalizer["std"])),
            threat_model=None if threat is None else ThreatModel(**threat),
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"ckpt: {path} has a broken description ({type(error).__name__}: {error})") from error
