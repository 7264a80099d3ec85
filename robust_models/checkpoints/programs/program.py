"""Program: another library's program as a network of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_models.errors import UserError


@dataclass(frozen=True)
class Opened:
    """A program that has been read, and what its file says about its input; None: nothing."""

    module: nn.Module
    move: Callable[[torch.device], nn.Module]  # the module on that device
    dtype: torch.dtype = torch.float32
    size: tuple[int | None, int | None, int | None] = (None, None, None)  # of an image, in the order of its input
    batches: tuple[tuple[int, int | None], ...] = ((1, None),)  # smallest and largest, the first that works counts
    stem: int | None = None  # pixels of the first convolution's kernel

    @property
    def channels_last(self) -> bool:
        """Its input is [N,H,W,C], as TensorFlow's programs have it."""
        return self.size[2] == 3 and self.size[0] != 3

    @property
    def image_shape(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height, width."""
        first, second, third = self.size
        return (third, first, second) if self.channels_last else self.size


class Program(nn.Module):
    """x [N,C,H,W] -> what the program gives, [N,classes], for any N; its weights are constants, its mode is fixed.

    A program that takes only certain batch sizes gets parts of the batch, the last one filled up with zeros: one that
    was made for single images runs N times. It computes in its own precision, so bf16 has no effect.
    """

    def __init__(
        self, opened: Opened, batch: tuple[int, int | None], image_size: int, *, channels_last: bool, log: bool = False
    ) -> None:
        super().__init__()
        # In a tuple, so that nn.Module does not see it: programs refuse train() and eval(), some have no `training`.
        self._held = (_constant(opened.module),)
        self._move = opened.move
        self.device = torch.device("cpu")
        self.dtype = opened.dtype
        self.channels_last = channels_last
        self.smallest, self.largest = batch
        self.image_size = image_size
        self.log = log  # the program ends in a softmax: the logarithm of its output has that softmax

    @property
    def module(self) -> nn.Module:
        """The library's own module."""
        return self._held[0]

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous: a traced `view` fails on channels_last.
        x = (x.permute(0, 2, 3, 1) if self.channels_last else x).to(self.dtype).contiguous()
        with torch.autocast(x.device.type, enabled=False):
            parts = [self._padded(part) for part in x.split(self.largest or max(1, len(x)))]
        output = torch.cat(parts) if len(parts) > 1 else parts[0]
        return output.clamp_min(torch.finfo(output.dtype).tiny).log() if self.log else output

    def _padded(self, x: Tensor) -> Tensor:
        missing = self.smallest - len(x)
        if missing <= 0:
            return tensor_of(self.module(x))
        filled = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        return tensor_of(self.module(filled))[: len(x)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Program":
        """Follows `.to(device)`; other memory formats and number types are not the program's."""
        device = fn(torch.empty(0, device=self.device)).device
        if device == self.device:
            return self
        try:
            self._held = (_constant(self._move(device)),)
            with torch.no_grad():
                self(torch.zeros(1, 3, self.image_size, self.image_size, device=device))
        except Exception as error:  # another library's code
            raise UserError(f"device: this program does not run on {device} ({reason(error)}); use cpu") from error
        self.device = device
        return self


def _constant(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():  # TorchScript modules refuse requires_grad_()
        parameter.requires_grad_(False)
    return module


def tensor_of(output: Any) -> Tensor:
    """The program's output, unpacked where it is alone in a tuple, a list or a dict."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        count = f" of {len(output)}" if isinstance(output, tuple | list) else ""
        raise TypeError(f"the output is a {type(output).__name__}{count}, not one tensor")
    return output


def reason(error: Exception) -> str:
    """The last line that says something, without control characters, at most 200 of its characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return f"{type(error).__name__}: {ascii(text)[1:-1][:200]}"
