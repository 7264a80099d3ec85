"""TorchScript files (torch.jit.save)."""

import warnings
from pathlib import Path

import torch
from torch import nn

from robust_models.checkpoints.programs.program import Opened

# A traced `view` may hold the batch of its example; the file does not tell which.
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
