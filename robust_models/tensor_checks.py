"""What attacks and refinement accept from Python: float images in their range, and one class index for each."""

from typing import Any

import torch
from torch import Tensor, nn

from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError

GREY_LEVEL = 1 / 255  # how far outside the range of pixels rounding may put one
RESCALE = "clamp them, or map them to [0, 1] first: (x + 1) / 2 of pixels in [-1, 1], x / 255 of pixels in [0, 255]"


def check_images(
    x: Any, *, name: str = "x", channels: int | None = None, low: float = 0, high: float = 1, advice: str = RESCALE
) -> None:
    """UserError unless x is a float tensor [N,C,H,W] with pixels in [low, high] and, if given, `channels` channels.

    A grey level beyond the range is taken for rounding. `name` and `advice` begin and end the message.
    """
    shape = f"[N,{channels or 'C'},H,W]"
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or x.shape[1] != (channels or x.shape[1]):
        came = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"{name}: {came}; expected float tensors {shape} in [{low:g}, {high:g}] (robust_models.to_float makes them "
            "of uint8)"
        )
    if x.numel() == 0:
        return
    lowest, highest = (value.item() for value in x.aminmax())
    slack = GREY_LEVEL * (high - low)
    if not (low - slack <= lowest and highest <= high + slack):  # NaN compares false
        raise UserError(f"{name}: pixels run from {lowest:.4g} to {highest:.4g}, outside [{low:g}, {high:g}]; {advice}")


def check_labels(y: Any, n: int, num_classes: int | None) -> None:
    """UserError unless y is an integer tensor [n] of class indices below num_classes (None: unknown)."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool or y.shape != (n,):
        came = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"y: {came} for {n} images; expected one class index for each")
    if n == 0:
        return
    low, high = (int(value) for value in y.aminmax())
    if low < 0 or high >= (num_classes or high + 1):
        known = "class indices are 0 or more"
        if num_classes is not None:
            known = f"the classifier has {num_classes} classes (0 to {num_classes - 1})"
        raise UserError(f"y: classes run from {low} to {high}, but {known}")


def class_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """The classes of the first RobustClassifier in the model; None where there is none."""
    return next((part.class_names for part in model.modules() if isinstance(part, RobustClassifier)), None)
