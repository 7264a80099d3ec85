"""PyTorch's own programs: TorchScript (torch.jit.save) and torch.export files (torch.export.save)."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from robust_models.checkpoints.programs.program import Opened

_UNBOUNDED = 1 << 31  # export's own "no limit" lies above


def load_exported(path: Path) -> tuple[ExportedProgram, list[Tensor]]:
    """The program on the CPU, and stand-ins for its inputs, with their shapes: those of its example.

    Unpickles parts of the file; raises whatever that raises.
    """
    logger = logging.getLogger("torch.export")
    disabled, logger.disabled = logger.disabled, True  # it logs a traceback before it raises
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
    finally:
        logger.disabled = disabled
    by_name = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [by_name[str(name)] for name in program.graph_signature.user_inputs]
    on_cpu = all(one.device.type == "cpu" for one in inputs)
    return program if on_cpu else move_to_device_pass(program, "cpu"), inputs


def open_exported(path: Path) -> Opened:
    """The program's module. Unpickles parts of the file; raises whatever that raises."""
    program, inputs = load_exported(path)
    if len(inputs) != 1:
        raise TypeError(f"it takes {len(inputs)} inputs, not one batch of images")
    image = inputs[0]
    if image.ndim != 4:
        raise TypeError(f"its input has {image.ndim} dimensions, not 4 ([N,C,H,W])")

    def move(device: torch.device) -> nn.Module:
        return move_to_device_pass(program, str(device)).module()

    channels, height, width = (n if isinstance(n, int) else None for n in image.shape[1:])
    batch = batch_limits(image.shape[0], program.range_constraints)
    return Opened(program.module(), move, dtype=image.dtype, size=(channels, height, width), batches=(batch,))


def batch_limits(n: Any, ranges: dict[Any, Any]) -> tuple[int, int | None]:
    """Smallest and largest batch that the program's guards let through."""
    if isinstance(n, int):
        return n, n
    limits = ranges.get(n.node.expr)
    if limits is None:
        return 1, None
    largest = int(limits.upper) if limits.upper < _UNBOUNDED else None
    return max(1, int(limits.lower)), largest


# A traced `view` may hold the batch of its example; the file does not state which.
_BATCHES = ((1, None), *((n, n) for n in (1, 2, 4, 8, 16, 32)))


def open_torchscript(path: Path) -> Opened:
    """The module in eval mode. Runs the file's code; raises whatever that raises."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # until 2.15 and after: TorchScript itself is deprecated
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        module = torch.jit.load(path, map_location="cpu")
    if getattr(module, "training", False):
        module.eval()

    def move(device: torch.device) -> nn.Module:
        return module.to(device)

    tensors = [*module.parameters(), *module.buffers()]
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    stem = next((tensor.shape[-1] for tensor in tensors if tensor.ndim == 4), None)
    return Opened(module, move, dtype=dtype, batches=_BATCHES, stem=stem)
