"""From a trusted program file to a RobustClassifier."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from robust_models.checkpoints.programs.fit import Unfit, fit
from robust_models.checkpoints.programs.kinds import Kind
from robust_models.checkpoints.programs.onnx.graph import open_onnx
from robust_models.checkpoints.programs.program import Opened, reason
from robust_models.checkpoints.programs.torch_programs import open_exported, open_torchscript
from robust_models.classifier import Description, Normalizer, RobustClassifier
from robust_models.errors import UserError
from robust_models.labels import assumed_names, default_class_names

_OPEN: dict[Kind, Callable[[Path], Opened]] = {
    "torchscript": open_torchscript,
    "torch.export": open_exported,
    "onnx": open_onnx,
}
_NAMES: dict[Kind, str] = {"torchscript": "a TorchScript", "torch.export": "a torch.export", "onnx": "an ONNX"}
_DANGERS: dict[Kind, str] = {
    "torchscript": "its code runs with your rights, from the moment it is loaded, and can read and write files",
    "torch.export": "it holds pickles and operators that run with your rights, from the moment it is loaded",
    "onnx": "it is a graph that is run, at whatever cost, and it may name other files of this machine",
}


def named(source: str, kind: Kind) -> str:
    """ "ckpt: FILE is a TorchScript program", the beginning of every message about it."""
    return f"{source} is {_NAMES[kind]} program"


def check_trusted(name: str, kind: Kind, *, trust: bool) -> None:
    """UserError, which begins with `name`, unless the person trusts a program of this kind."""
    if not trust:
        raise UserError(
            f"{name}, not only tensors: {_DANGERS[kind]}; pass --trust (in Python: trust=True) if you trust its maker"
        )


def load_program(
    path: Path,
    kind: Kind,
    *,
    trust: bool,
    normalizer: Normalizer | None,
    class_names: Sequence[str] | None,
    image_size: int | None = None,
) -> RobustClassifier:
    """The classifier in a program file (see kind_of), in eval mode on the CPU; runs code from the file if trusted.

    normalizer: None applies none, as a program usually holds its own. image_size [pixels]: None takes what the program
    states, else the first of 32 and 224 that it takes (224 first behind a 7x7 stem). The architecture is
    "program:KIND"; `description.recipe["source"]` says what was found by calling it. UserError where the file is not
    trusted, is broken, or is no classifier with gradients at its input.
    """
    name = named(f"ckpt: {path}", kind)
    check_trusted(name, kind, trust=trust)
    if kind == "onnx" and importlib.util.find_spec("onnx") is None:
        raise UserError(f'{name}, which needs the package onnx; pip install "bigroc[onnx]"')
    try:
        opened = _OPEN[kind](path)
    except UserError:
        raise
    except Exception as error:  # another library's code
        raise UserError(f"{name} that cannot be opened ({reason(error)})") from error
    try:
        fitted = fit(opened, normalizer or Normalizer(), image_size)
    except Unfit as error:
        raise UserError(f"{name}, but {error}") from error
    names = tuple(class_names or default_class_names(fitted.num_classes, fitted.program.image_size))
    if len(names) != fitted.num_classes:
        raise UserError(f"class_names: {len(names)} given, but {path} gives logits for {fitted.num_classes} classes")
    assumed = {
        "normalize": None if normalizer else "none, or within the program",
        "class_names": None if class_names else assumed_names(names),
        "image_size": None if fitted.size_is_stated else f"{fitted.program.image_size} px",
    }
    source = {
        "layout": f"{_NAMES[kind].split(' ', 1)[1]} program",
        "trusted": True,
        "normalizer": "as given" if normalizer else "none assumed; the program may hold its own",
        **fitted.found,
        "assumed": {name: value for name, value in assumed.items() if value is not None},
    }
    description = Description(
        f"program:{kind}",
        names,
        fitted.program.image_size,
        normalizer=normalizer or Normalizer(),
        recipe={"source": source},
    )
    return RobustClassifier(fitted.program, description).eval()
