"""Generators that are a function of noise: z [n,...] or (z, y [n]) -> images [n,3,H,W].

A function or module in the user's own code, a TorchScript file or a torch.export file. What flags do not say of it, its
attributes may: z_shape, num_classes, class_names, pixels.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from refine.generators.generator_flags import GeneratorFlags, Pixels, split_spec
from refine.generators.sampler import Opened
from robust_models.checkpoints.programs import Kind, kind_of
from robust_models.checkpoints.programs.load_program import check_trusted, named
from robust_models.checkpoints.programs.program import reason, tensor_of
from robust_models.checkpoints.programs.torch_programs import batch_limits, load_exported, open_torchscript
from robust_models.errors import UserError, none_of
from robust_models.images.open import fingerprint

_RANGES: dict[Pixels, tuple[float, float]] = {"unit": (0, 1), "symmetric": (-1, 1), "bytes": (0, 255)}
_OVERSHOOT = 0.05  # of the range: what samplers without a last clipping leave outside, and clipping mends
_KINDS: dict[str, Kind] = {"torchscript": "torchscript", "export": "torch.export"}


@dataclass(frozen=True)
class FunctionSampler:
    """A function of noise, called without gradients."""

    function: Callable[..., Any]
    z_shape: tuple[int, ...]
    num_classes: int | None
    numbers: Mapping[str, int]
    pixels: Pixels | None
    device: torch.device
    batch: int | None = None

    def __call__(self, generators: Sequence[torch.Generator], y: Tensor | None, *, quick: bool = False) -> Tensor:
        z = torch.stack([torch.randn(self.z_shape, generator=one) for one in generators]).to(self.device)
        with torch.no_grad():
            x = tensor_of(self.function(z) if y is None else self.function(z, y.to(self.device)))
        return in_unit(x, self.pixels)


def in_unit(x: Tensor, pixels: Pixels | None) -> Tensor:
    """x in the range called `pixels` -> [0,1]. UserError where it is not in that range."""
    known = pixels or ("unit" if x.is_floating_point() else "bytes")
    low, high = _RANGES[known]
    if x.numel() and x.isfinite().all():
        least, most = (float(value) for value in x.aminmax())
        slack = _OVERSHOOT * (high - low)
        if known == "bytes" and x.is_floating_point() and most <= 1:
            raise UserError(
                f"pixels run from {least:.4g} to {most:.4g}, which is black if they are bytes; leave "
                "--generator-pixels out, or say unit"
            )
        if least < low - slack or most > high + slack:
            others = ", ".join(f"{name} [{a:g},{b:g}]" for name, (a, b) in _RANGES.items() if name != known)
            raise UserError(
                f"pixels run from {least:.4g} to {most:.4g}, outside [{low:g},{high:g}]; say what they are with "
                f"--generator-pixels ({others}), or clip them in the generator"
            )
    return (x.float() - low) / (high - low)


class _Found(NamedTuple):
    """A function of noise, and what its file says of it."""

    function: Callable[..., Any]
    path: Path
    z_shape: tuple[int, ...] | None = None
    batch: int | None = None


def open_function(flags: GeneratorFlags, device: torch.device, *, trust: bool) -> Opened:
    """The generator that flags.generator names, on the device. UserError where it cannot be used, or is not trusted."""
    spec = flags.generator
    assert spec is not None
    kind, name = split_spec(spec)
    if kind == "python":
        if not trust:
            raise UserError(
                f"generator: {spec} is code that runs with your rights; pass --trust (in Python: trust=True) if you "
                "trust its maker"
            )
        found = _imported(spec, name, device)
    else:
        found = _program(Path(name), _KINDS[kind], device, trust=trust)

    def said(attribute: str) -> Any:
        return getattr(found.function, attribute, None)

    z_shape = _shape(flags.generator_latent) or found.z_shape or _shape(said("z_shape"))
    if z_shape is None:
        raise UserError(
            f"generator_latent: the shape of the noise that {spec} takes is not known; give it, such as 128 or "
            "128,1,1, or let the generator have an attribute z_shape"
        )
    pixels = flags.generator_pixels or said("pixels")
    if pixels not in (None, *_RANGES):
        raise UserError(f"generator_pixels: the attribute pixels of {spec}: {none_of(pixels, _RANGES)}")
    names = tuple(str(name).casefold() for name in said("class_names") or ())
    num_classes = flags.generator_classes or said("num_classes") or len(names) or None
    numbers = {name: i for i, name in enumerate(names)}
    sampler = FunctionSampler(found.function, z_shape, num_classes, numbers, pixels, device, found.batch)
    return Opened(sampler, found.path, fingerprint(found.path))


def _imported(spec: str, name: str, device: torch.device) -> _Found:
    """What "package.module:function" stands for; the current folder comes last among the places that are searched."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"generator: {spec} names no function; give python:PACKAGE.MODULE:FUNCTION")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code
        raise UserError(
            f"generator: {spec}: the module {module_name} cannot be imported ({reason(error)}); it is looked for among "
            "installed packages and in the current folder"
        ) from error
    found: Any = module
    for word in attribute.split("."):
        if not hasattr(found, word):
            raise UserError(f"generator: {spec}: {none_of(word, [n for n in vars(found) if not n.startswith('_')])}")
        found = getattr(found, word)
    if not callable(found):
        raise UserError(f"generator: {spec} is a {type(found).__name__}, which cannot be called; name a function of z")
    if isinstance(found, nn.Module):
        found = found.to(device).eval()
    return _Found(found, Path(module.__file__ or spec))


def _program(path: Path, kind: Kind, device: torch.device, *, trust: bool) -> _Found:
    if not path.is_file():
        raise UserError(f"generator: no file {path}")
    if (came := kind_of(path)) != kind:
        prefix = next((prefix for prefix, known in _KINDS.items() if known == came), None)
        raise UserError(f"generator: {path} is no {kind} file; {f'give {prefix}:{path}' if prefix else _OWN_CODE}")
    check_trusted(named(f"generator: {path}", kind), kind, trust=trust)
    try:
        return _load(path, kind, device)
    except Exception as error:  # another library's code
        raise UserError(f"generator: {path} cannot be opened ({reason(error)})") from error


_OWN_CODE = (
    "a pickle, as of StyleGAN, StudioGAN or mimicry, is opened by the code that it was made with: in a function of "
    "your own, python:PACKAGE.MODULE:FUNCTION"
)


def _load(path: Path, kind: Kind, device: torch.device) -> _Found:
    if kind == "torchscript":
        return _Found(open_torchscript(path).move(device), path)
    program, (z, *_) = load_exported(path)
    least, most = batch_limits(z.shape[0], program.range_constraints)
    module = move_to_device_pass(program, str(device)).module()
    return _Found(module, path, tuple(map(int, z.shape[1:])), least if least == most else None)


def _shape(text: Any) -> tuple[int, ...] | None:
    """ "128,1,1", 128 or (128, 1, 1) as a shape."""
    if text is None:
        return None
    words = text.split(",") if isinstance(text, str) else list(text) if isinstance(text, Sequence) else [text]
    try:
        shape = tuple(int(word) for word in words)
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise UserError(f"generator_latent: {text!r} is no shape; give numbers with commas, such as 128 or 128,1,1")
    return shape
