"""Where the work runs and in which precision, decided once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from robust_models.classifier import Precision, RobustClassifier
from robust_models.errors import UserError

PrecisionChoice = Literal["auto", "fp32", "bf16"]


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU; any other torch device name is checked."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error
    return device


def pick_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """ "auto" is bf16 only where the hardware multiplies bf16 natively; elsewhere it is 2-3x slower than fp32."""
    if choice != "auto":
        return choice
    return "bf16" if _multiplies_bf16(device) else "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not tell: fp32 is safe
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def place(model: RobustClassifier, device: torch.device, precision: PrecisionChoice) -> RobustClassifier:
    """The model on the device, convolutions in channels_last, computing in the picked precision."""
    model.precision = pick_precision(precision, device)
    model.to(device)
    return model.to(memory_format=torch.channels_last)


@contextmanager
def exact_fp32() -> Iterator[None]:
    """No TF32 inside: by default torch convolves float32 on CUDA with 10 bits of mantissa. Settings return as found."""
    found = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = found
