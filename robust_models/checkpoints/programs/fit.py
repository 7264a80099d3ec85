"""How a program is to be called, found by calling it: batch, image size, classes, and that its gradients are there."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from robust_models.checkpoints.programs.program import Opened, Program, reason
from robust_models.classifier import Normalizer

_SIZES = (32, 224)  # pixels: CIFAR's and ImageNet's
_IMAGENET_STEM = 7  # pixels of the kernel
_TOLERANCE = 1e-2  # of the largest logit; batch statistics and dropout move logits by more, rounding by less


class Unfit(Exception):
    """Why the program is no classifier that can be refined with; one line."""


@dataclass(frozen=True)
class Fitted:
    """The network, its number of classes, and what was found out, for people."""

    program: Program
    num_classes: int
    found: dict[str, Any]
    size_is_stated: bool  # by the person or by the program


def fit(opened: Opened, normalizer: Normalizer, image_size: int | None) -> Fitted:
    """The program as a network of ours. Raises Unfit where its output, batches or gradients are no classifier's."""
    sizes, said_by = _sizes(opened, image_size)
    with torch.random.fork_rng(devices=[]):  # a program may draw
        program, num_classes = _first_that_runs(opened, sizes, normalizer)
        x = _pixels(3, program.image_size, normalizer)
        _refuse_side_effects(program, x)
        program.log = _are_probabilities(program, x)
        _refuse_missing_gradients(program, x)
    found = {
        "image_size": f"{program.image_size}, {said_by}",
        "channels": "last, [N,H,W,3]" if program.channels_last else "first, [N,3,H,W]",
        "batch": _batch_text(program.smallest, program.largest),
        "outputs": "probabilities, taken by their logarithm" if program.log else "logits",
        "dtype": str(program.dtype).removeprefix("torch."),
        "parameters": sum(tensor.numel() for tensor in program.module.parameters()),
    }
    return Fitted(program, num_classes, found, size_is_stated=len(sizes) == 1)


def _sizes(opened: Opened, given: int | None) -> tuple[tuple[int, ...], str]:
    """Image sizes to try [pixels], and who says so."""
    channels, height, width = opened.image_shape
    if channels not in (None, 3):
        raise Unfit(f"its input has {channels} channels; only RGB images are refined")
    if height != width and None not in (height, width):
        raise Unfit(f"its input is {height}x{width} pixels; only square images are refined")
    stated = height or width
    if given is not None and stated not in (None, given):
        raise Unfit(f"its input is {stated}x{stated} pixels, not {given}x{given} as given")
    if given is not None:
        return (given,), "as given"
    if stated is not None:
        return (stated,), "from the program's input"
    sizes = _SIZES if (opened.stem or 0) < _IMAGENET_STEM else _SIZES[::-1]
    return sizes, f"the first of {sizes[0]} and {sizes[1]} that it takes; the program does not state it"


def _first_that_runs(opened: Opened, sizes: tuple[int, ...], normalizer: Normalizer) -> tuple[Program, int]:
    failures: list[str] = []
    # A program that states no sizes may want its channels last.
    orders = (False, True) if opened.size == (None, None, None) else (opened.channels_last,)
    for channels_last, batch in product(orders, opened.batches):
        for size in sizes:
            program = Program(opened, batch, size, channels_last=channels_last)
            try:
                with torch.no_grad():
                    shape = program(_pixels(3, size, normalizer)).shape
            except Exception as error:  # another library's code
                failures.append(f"on {size}x{size} pixels: {reason(error)}")
                continue
            if len(shape) == 2 and shape[0] == 3 and shape[1] >= 2:
                return program, shape[1]
            failures.append(f"on {size}x{size} pixels: 3 images give an output of shape {list(shape)}")
    raise Unfit(f"it does not turn images [N,3,H,W] into logits [N,classes] ({failures[0]})")


def _pixels(n: int, size: int, normalizer: Normalizer) -> Tensor:
    """Normalised random images, always the same."""
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return (x - torch.tensor(normalizer.mean).view(1, -1, 1, 1)) / torch.tensor(normalizer.std).view(1, -1, 1, 1)


def _refuse_side_effects(program: Program, x: Tensor) -> None:
    """An image's logits must depend on that image only: no batch statistics, no dropout, no counters."""
    before = {name: buffer.clone() for name, buffer in program.module.named_buffers()}
    with torch.no_grad():
        together, alone = program(x), program(x[:1])
    changed = [name for name, buffer in program.module.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise Unfit(f"running it changes its own tensors (first {changed[0]}); {_TRAINING}")
    if not torch.isfinite(together).all():
        raise Unfit("its output on random pixels is not finite; does it need a normaliser?")
    if (together[:1] - alone).abs().max() > _TOLERANCE * together.abs().max():
        raise Unfit(
            f"the logits of an image change with the other images of its batch, or from run to run; {_TRAINING}"
        )


_TRAINING = "it was made in training mode, make it again after model.eval()"


@torch.no_grad()
def _are_probabilities(program: Program, x: Tensor) -> bool:
    output = program(x).float()
    return bool((output >= 0).all() and ((output.sum(dim=1) - 1).abs() < 1e-3).all())


def _refuse_missing_gradients(program: Program, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = program(x)
            weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype) ** 3  # not constant: a softmax' sum is
            (gradient,) = torch.autograd.grad((logits * weights).sum(), x)
    except Exception as error:  # another library's code
        raise Unfit(f"it has no gradient at its input ({reason(error)}); {_GRADIENTS}") from error
    if not torch.isfinite(gradient).all():
        raise Unfit(f"its gradient at random pixels is not finite; {_GRADIENTS}")
    if (gradient.flatten(1).abs().amax(dim=1) == 0).any():
        raise Unfit(f"its gradient at random pixels is zero; {_GRADIENTS}")


_GRADIENTS = "refining follows gradients, so export it without rounding, no_grad or inference-only optimisation"


def _batch_text(smallest: int, largest: int | None) -> str:
    if largest is None:
        return "any" if smallest == 1 else f"{smallest} or more; smaller ones are filled up"
    return f"parts of {smallest if smallest == largest else f'{smallest} to {largest}'} images"
