"""Hugging Face folders: tensors beside a config.json that says, in timm's or transformers' words, what network it is.

Only JSON and tensors are read: code that lies in such a folder, or that it points to, is never looked at.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from robust_models.architectures import build, huggingface
from robust_models.checkpoints.fill import outline
from robust_models.checkpoints.layouts import Found
from robust_models.checkpoints.ours import (
    MAX_CLASSES,
    check_arch,
    check_options,
    is_safetensors,
    read_safetensors,
)
from robust_models.checkpoints.preprocessing import image_size_of, normalizer_of, normalizer_of_processor
from robust_models.checkpoints.subtrees import State, find_network
from robust_models.checkpoints.torch_format import read_torch_file
from robust_models.errors import UserError

MAX_JSON_BYTES = 16 << 20
MAX_SHARDS = 1000
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LABELS = ("id2label", "label2id", "label_names", "label_descriptions")


def folder_of(file: Path) -> Path | None:
    """The folder of a file of weights (model.safetensors, pytorch_model.bin) that has a config.json of its network."""
    if file.name not in _WEIGHTS or not (file.parent / "config.json").is_file():
        return None
    config = _read_json(file.parent / "config.json")
    return file.parent if config.keys() & {"architecture", "architectures"} else None


def read_folder(path: Path, *, ema: bool) -> Found:
    """The classifier in a folder as timm's and transformers' save functions write it. UserError where there is none."""
    if not (path / "config.json").is_file():
        raise UserError(
            f"ckpt: {path} is a folder without config.json; give a file, or a Hugging Face folder "
            f"({_WEIGHTS[0]} and config.json)"
        )
    config = _read_json(path / "config.json")
    if "auto_map" in config:
        raise UserError(f"ckpt: {path} needs Python code of its author (auto_map in config.json), which is never run")
    if "architecture" in config:
        reader = _read_timm
    elif "architectures" in config:
        reader = _read_transformers
    else:
        raise UserError(
            f"ckpt: {path}/config.json names no network: neither architecture (timm) nor architectures "
            f"(transformers) among {_listed(config)}"
        )
    if ema:
        raise UserError(f"ckpt: {path} has no averaged weights beside its own; load it without ema")
    return reader(config, _read_tensors(path), path)


def _read_timm(config: dict[str, Any], state: State, path: Path) -> Found:
    arch, options = f"timm:{config['architecture']}", config.get("model_args") or {}
    check_arch(arch, path)
    check_options(options, path)
    channels = options.get("in_chans", 3)
    options = {name: value for name, value in options.items() if name not in ("num_classes", "in_chans")}
    said = config.get("pretrained_cfg", config)  # older files have its entries beside the architecture
    if not isinstance(said, dict):
        raise UserError(f"ckpt: {path}/config.json has a pretrained_cfg that is a {type(said).__name__}")
    size = said.get("input_size") or (3, None, None)
    if not (isinstance(size, list | tuple) and len(size) == 3 and size[0] == channels == 3):
        raise UserError(f"ckpt: {path}/config.json: input_size is {size!a}; only networks for RGB images are read")
    names = config.get("label_names", said.get("label_names"))
    classes = config.get("num_classes", said.get("num_classes"))
    classes = _class_names(names if names else None, classes, path)
    network = find_network(state, ema=False)
    _check_size(arch, options, len(classes), state, path)
    return Found(
        layout="Hugging Face folder of timm",
        variants=network.variants,
        normalizer=normalizer_of(said.get("mean"), said.get("std"), path),
        ignored=network.ignored,
        arch=arch,
        options=options,
        class_names=classes,
        image_size=image_size_of(options.get("img_size", list(size[1:])), path),
    )


def _read_transformers(config: dict[str, Any], state: State, path: Path) -> Found:
    names = config["architectures"]
    name = names[0] if isinstance(names, list) and names else names
    known = huggingface.image_classifiers()
    if not isinstance(name, str) or name not in known:
        raise UserError(
            f"ckpt: {path} holds a {ascii(name)[:80]}, which is none of transformers' image classifiers "
            "(ViTForImageClassification, ResNetForImageClassification, ...)"
        )
    with _at(path):
        values = huggingface.own_values(name, {key: value for key, value in config.items() if key not in _LABELS})
        options = {"config": values}
        check_options(values, path)
        classes = _class_names(config.get("id2label"), config.get("num_labels", 2), path)  # 2: what it does not write
        arch = f"transformers:{name}"
        _check_size(arch, options, len(classes), state, path)
        tensors, unused = huggingface.renamed(name, options, len(classes), state)
    pixels = _read_preprocessor(path)
    return Found(
        layout="Hugging Face folder of transformers",
        variants=[tensors],
        normalizer=normalizer_of_processor(pixels, path),
        ignored=unused,
        arch=arch,
        options=options,
        class_names=classes,
        image_size=image_size_of(config.get("image_size") or pixels.get("crop_size") or pixels.get("size"), path),
    )


def _check_size(arch: str, options: dict[str, Any], classes: int, state: State, path: Path) -> None:
    """UserError where the network would not be made of about as many numbers as the file holds, before it is built."""
    with _at(path):
        expected = outline(partial(build, arch, num_classes=classes, options=options), len(state)).state_dict()
        wanted, held = (sum(tensor.numel() for tensor in s.values()) for s in (expected, state))
        if not 0.9 * held <= wanted <= 1.01 * held + 1000:  # a file may have a pooler that classifiers do not use
            raise UserError(f"config.json describes {arch} of {wanted:,} numbers, the tensors hold {held:,}")


@contextmanager
def _at(path: Path) -> Iterator[None]:
    """One line for what goes wrong while a library takes config.json at its word."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith("ckpt: ") else f"ckpt: {path}: {text}") from error
    except Exception as error:  # the values are anyone's, and so are the ways to fail with them
        reason = ascii(" ".join(str(error).split())[:200])[1:-1]
        raise UserError(
            f"ckpt: {path}/config.json does not make a network ({type(error).__name__}: {reason})"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    if file.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"ckpt: {file} is {file.stat().st_size:,} bytes long, more than {MAX_JSON_BYTES:,}")
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"ckpt: {file} is broken ({type(error).__name__}: {ascii(str(error)[:100])[1:-1]})") from error
    if not isinstance(content, dict):
        raise UserError(f"ckpt: {file} holds a {type(content).__name__}, expected names and values")
    return content


def _read_tensors(path: Path) -> State:
    """The tensors of the folder's one file of weights, or of all shards that its index names."""
    for name in _WEIGHTS:
        if (path / name).is_file():
            return _read_weights(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise UserError(f"ckpt: {path} has a config.json but neither {' nor '.join(_WEIGHTS)}")


def _read_shards(index: Path) -> State:
    places = _read_json(index).get("weight_map")
    if not (isinstance(places, dict) and all(isinstance(name, str) for name in places.values())):
        raise UserError(f"ckpt: {index} has no weight_map from tensors' names to files")
    files = sorted(set(places.values()))
    if len(files) > MAX_SHARDS:
        raise UserError(f"ckpt: {index} names {len(files):,} files, more than {MAX_SHARDS:,}")
    state: State = {}
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise UserError(f"ckpt: {index} names {ascii(name)[:80]}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise UserError(f"ckpt: {index} names {name}, which is missing; download the whole folder")
        state |= _read_weights(index.parent / name)
    return state


def _read_weights(file: Path) -> State:
    content = read_safetensors(file)[0] if is_safetensors(file) else read_torch_file(file)
    entries = content if isinstance(content, dict) else {}
    state = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise UserError(f"ckpt: {file} holds no tensors by name")
    return state


def _class_names(names: Any, count: Any, path: Path) -> tuple[str, ...]:
    """By index (a list, or a dict of numbers as text), else the numbers up to `count`."""
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if names is None and type(count) is int and 0 < count <= MAX_CLASSES:
        return tuple(str(i) for i in range(count))
    if not (isinstance(names, list) and 0 < len(names) <= MAX_CLASSES and all(isinstance(n, str) for n in names)):
        raise UserError(f"ckpt: {path}/config.json does not name 1 to {MAX_CLASSES:,} classes, each by one text")
    return tuple(names)


def _read_preprocessor(path: Path) -> dict[str, Any]:
    """What transformers wrote about the images; {} where nothing is there."""
    if (path / "preprocessor_config.json").is_file():
        return _read_json(path / "preprocessor_config.json")
    if (path / "processor_config.json").is_file():
        inner = _read_json(path / "processor_config.json").get("image_processor")
        return inner if isinstance(inner, dict) else {}
    return {}


def _listed(config: dict[str, Any]) -> str:
    return ", ".join(ascii(name)[1:-1][:40] for name in list(config)[:6]) or "no entries"
