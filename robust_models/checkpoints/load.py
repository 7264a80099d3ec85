"""From a name or a file to a RobustClassifier. Loading never runs code from the file."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_models.architectures import build
from robust_models.checkpoints.foreign import describe
from robust_models.checkpoints.layouts import find_layout
from robust_models.checkpoints.ours import is_safetensors, read_description, read_safetensors
from robust_models.checkpoints.torch_file import read_torch_file
from robust_models.classifier import NORMALIZERS, Normalizer, RobustClassifier
from robust_models.errors import UserError

PRETRAINED = Path(__file__).parent.parent / "pretrained"


def embedded_names() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(file.stem for file in PRETRAINED.glob("*.safetensors"))


def find(checkpoint: str | Path) -> Path:
    """The file of the embedded classifier `checkpoint`, or that path itself. UserError where there is no file."""
    path = PRETRAINED / f"{checkpoint}.safetensors" if str(checkpoint) in embedded_names() else Path(checkpoint)
    if not path.is_file():
        near = difflib.get_close_matches(str(checkpoint), embedded_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"give a file or one of: {', '.join(embedded_names())}"
        raise UserError(f"ckpt: no file {path}; {hint}")
    return path


def load(
    checkpoint: str | Path,
    *,
    arch: str | None = None,
    normalize: str | Normalizer | None = None,
    class_names: Sequence[str] | None = None,
    ema: bool = False,
) -> RobustClassifier:
    """The classifier called `checkpoint` (see embedded_names) or stored in that file, in eval mode on the CPU.

    Reads this project's files and other people's (PyTorch's formats and safetensors; layouts.py). What a foreign file
    does not tell may be given: arch (see architectures.build; None: from the tensors' shapes), normalize ("none",
    "cifar10", "imagenet" or a Normalizer; None: the file's, else "none") and class_names. ema: the averaged weights.
    `description.recipe["source"]` says what was read, ignored and assumed. UserError when the file is missing, is not a
    checkpoint, or does not fit its architecture.
    """
    path = find(checkpoint)
    normalizer = _normalizer(normalize)
    if is_safetensors(path):
        content, metadata = read_safetensors(path)
    else:
        content, metadata = read_torch_file(path), {}
    if "bigroc" in metadata:
        if ema:
            raise UserError(f"ckpt: {path} has no averaged weights beside its own; load it without ema")
        description, candidates = read_description(metadata["bigroc"], path), [content]
        given = {"arch": arch, "normalizer": normalizer, "class_names": class_names and tuple(class_names)}
        description = replace(description, **{name: value for name, value in given.items() if value is not None})
    else:
        found = find_layout(content, ema=ema, where=f"ckpt: {path}")
        if is_safetensors(path):
            found.layout = f"safetensors without this project's description, {found.layout}"
        description, candidates = describe(found, path, arch=arch, normalizer=normalizer, class_names=class_names)
    network = _filled(description.arch, description.num_classes, description.activation, candidates, path)
    return RobustClassifier(network, description).eval()


def _normalizer(normalize: str | Normalizer | None) -> Normalizer | None:
    if not isinstance(normalize, str):
        return normalize
    if normalize not in NORMALIZERS:
        raise UserError(f"normalize: {normalize!r} is none of {', '.join(NORMALIZERS)}; other values: a Normalizer")
    return NORMALIZERS[normalize]


def _filled(arch: str, classes: int, activation: str, candidates: list[dict[str, Tensor]], path: Path) -> nn.Module:
    """The network with the tensors of the first candidate whose names fit, or a UserError about the last one."""
    ours = ":" not in arch
    # Ours is first built without memory: a file that names a huge width is refused before that width is allocated.
    with torch.device("meta" if ours else "cpu"):
        network = build(arch, num_classes=classes, activation=activation)
    expected = network.state_dict()
    candidates = [_with_counters(state, expected) for state in candidates]
    state = next((state for state in candidates if state.keys() == expected.keys()), candidates[-1])
    _compare(expected, state, arch, path)
    if ours:
        network = network.to_empty(device="cpu")  # every tensor of ours is in the state
    network.load_state_dict(state)
    return network


def _with_counters(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files of torch before 0.4.1 lack the batch counters of batch norms, which inference does not use."""
    counters = [name for name in expected if name.endswith(".num_batches_tracked") and name not in state]
    return {**state, **{name: torch.tensor(0) for name in counters}}


def _compare(expected: dict[str, Tensor], state: dict[str, Tensor], arch: str, path: Path) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [ascii(name)[1:-1][:80] for name in state if name not in expected]
    if missing or unexpected:
        raise UserError(
            f"ckpt: {path} does not fit {arch}: "
            f"{len(missing)} tensors missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"ckpt: {path} does not fit {arch}: {name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
            )
