"""Networks that functions of other people build: called the way they can be, and tried once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_models.architectures.libraries import class_count_argument, function_of
from robust_models.checkpoints.fill import fill
from robust_models.checkpoints.infer.match import is_head, num_classes
from robust_models.checkpoints.subtrees import State
from robust_models.classifier import Description, RobustClassifier
from robust_models.errors import UserError

USUAL_SIZES = (32, 224, 28, 64, 96, 128, 256, 299, 384, 16, 8, 4, 2)  # pixels, in the order they are tried
MAX_COUNTS = 8


def load_function(description: Description, candidates: Sequence[State], path: Path) -> RobustClassifier:
    """The classifier that a function of other people builds, with the tensors; RGB images in, logits [N,classes] out.

    Where nobody named the classes, they become as many as the network gives logits; where nobody gave the image size,
    it becomes the first usual one that the network takes. UserError with what to do for every other network.
    """
    where = f"ckpt: {path} with {description.arch}"
    network, count = _filled(description, candidates, path)
    channels = next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), 3)
    if channels != 3:
        raise UserError(f"{where} takes images of {channels} channels; only networks for RGB images are read")
    sizes = [description.image_size]
    if "image_size" in description.assumptions:
        sizes += [size for size in USUAL_SIZES if size != description.image_size]
    size, output = _first_output(network.eval(), sizes, where)
    classes = _classes_of(output, where)
    source = description.recipe["source"]
    assumed = dict(description.assumptions)
    if "image_size" in assumed:
        assumed["image_size"] = f"{size} px"
    names = description.class_names
    if "class_names" in assumed and classes != len(names):
        names = tuple(str(i) for i in range(classes))
        assumed["class_names"] = f"numbers, 0 to {classes - 1}"
    if classes != len(names):
        raise UserError(f"class_names: {len(names)} given, but {path} gives logits for {classes} classes")
    called = class_count_argument(function_of(description.arch), count)
    said = ", ".join(f"{name}={value}" for name, value in called.items()) or "nothing"
    source = {**source, "arch": f"{source['arch']}, called with {said}", "assumed": assumed}
    recipe = {**description.recipe, "source": source}
    described = replace(description, class_names=names, image_size=size, recipe=recipe)
    return RobustClassifier(network, described).eval()


def _filled(description: Description, candidates: Sequence[State], path: Path) -> tuple[nn.Module, int]:
    """The network, and the number of classes it was asked for: rows of the file's heads, the last first."""
    counts = [description.num_classes]
    if "class_names" in description.assumptions:
        counts += [count for count in _head_rows(candidates[-1]) if count not in counts]
    first_error: UserError | None = None
    for count in counts[:MAX_COUNTS]:
        try:
            return fill(replace(description, class_names=("",) * count), candidates, path), count
        except UserError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _head_rows(state: State) -> Iterator[int]:
    """Numbers of classes that the file's matrices allow: heads beside the classifier stand before or behind it."""
    yield num_classes(state)
    for tensor in reversed(state.values()):
        if is_head(tensor):
            yield len(tensor)


def _first_output(network: nn.Module, sizes: Sequence[int], where: str) -> tuple[int, Any]:
    """The first size [pixels] whose images the network takes, and what it gives for two of them."""
    failures: list[str] = []
    for size in sizes:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return size, network(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
        except Exception as error:  # other people's code
            failures.append(f"{type(error).__name__}: {ascii(' '.join(str(error).split())[:160])[1:-1]}")
    raise UserError(
        f"{where} does not take images of {sizes[0]}x{sizes[0]} px ({failures[0]}); pass --image-size (in Python: "
        "image_size=) if it was made for another size"
    )


def _classes_of(output: Any, where: str) -> int:
    """The number of logits for an image."""
    if not isinstance(output, Tensor):
        kind = f"a {type(output).__name__}"
        if isinstance(output, tuple | list):
            kind += f" of {', '.join(type(entry).__name__ for entry in output)[:80]}"
        raise UserError(f"{where} gives {kind}, expected logits [N,classes]; wrap it in a network that gives those")
    if output.ndim != 2 or len(output) != 2:
        raise UserError(f"{where} gives an output of shape {list(output.shape)} for 2 images, expected [2, classes]")
    if output.shape[1] < 2:
        raise UserError(f"{where} gives one number for an image; a classifier here has two classes or more")
    return output.shape[1]
