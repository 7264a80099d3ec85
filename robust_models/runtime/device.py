"""Where the work runs and in which precision, decided once for each loop."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx, nn

from robust_models.classifier import Precision, RobustClassifier
from robust_models.errors import UserError

PrecisionChoice = Literal["auto", "fp32", "bf16"]
PRECISION = "auto: bf16 where this machine is faster with it, else fp32"  # describes a verb's `precision` field
MEASURED_PRECISION = "fp32 for figures to quote or compare; bf16 for a quick first impression"
Hardware = Literal["cuda", "amx", "avx512_bf16", "none"]  # what multiplies bf16 here
Loop = Literal["attack", "unfolded attack", "training", "measurement"]

# Where `auto` takes bf16: only where it makes that very loop faster on that kind of machine. Rates are images per
# second in fp32 -> bf16; "EPYC" is an AMD EPYC with avx512_bf16 but no AMX, torch 2.14.1.
_BF16_PAYS: dict[Loop, frozenset[Hardware]] = {
    # PGD on a classifier whose batch norms are folded away: refinement and synthesis.
    # cuda, amx: matrix units that multiply bf16 at several times the rate of fp32.
    # avx512_bf16: 67.7 -> 147.7 on one such CPU; EPYC, two threads, cifar10-l2-small: 837 -> 1750. Transformers and
    # ConvNeXt have no batch norms to fold: EPYC, one thread, deit_tiny 15.2 -> 26.9, convnext_atto 29.4 -> 67.7.
    "attack": frozenset({"cuda", "amx", "avx512_bf16"}),
    # The same where a network keeps its batch norms, as it cannot be traced.
    # avx512_bf16: 450 -> 440 on one CPU, 742 -> 1487 on EPYC. A gain that not all of them have is no reason to round.
    "unfolded attack": frozenset({"cuda", "amx"}),
    # PGD-7 training steps. EPYC, CPU time of one thread: preact_resnet10_w32 61.7 -> 139.2 (attack folded) and
    # 59.2 -> 125.7 (not folded), resnet18 10.4 -> 18.0 and 10.7 -> 18.2.
    "training": frozenset({"cuda", "amx", "avx512_bf16"}),
    # Accuracies, distances, features: numbers that are compared with those of other machines.
    "measurement": frozenset(),
}
_MULTIPLIES: dict[Hardware, str] = {
    "cuda": "this GPU multiplies it",
    "amx": "this CPU multiplies it in AMX tiles",
    "avx512_bf16": "this CPU multiplies it",
}


@dataclass(frozen=True)
class PrecisionDecision:
    """A precision, and why it was taken, in words for people: "bf16 (auto: this CPU multiplies it)"."""

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason})"

    def summary(self) -> dict[str, str]:
        """Both, as they stand in a verb's JSON."""
        return {"precision": self.precision, "precision_reason": self.reason}


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


def decide_precision(choice: PrecisionChoice, device: torch.device, loop: Loop) -> PrecisionDecision:
    """The precision of a loop: the one chosen, or for "auto" bf16 where it pays (see _BF16_PAYS)."""
    if (choice, loop) == ("fp32", "measurement"):  # what it is by default: nobody need have set it
        return PrecisionDecision("fp32", "measurements are exact")
    if choice != "auto":
        return PrecisionDecision(choice, "as set")
    hardware = bf16_hardware(device)
    if hardware in _BF16_PAYS[loop]:
        return PrecisionDecision("bf16", f"auto: {_MULTIPLIES[hardware]}")
    if loop == "measurement":
        return PrecisionDecision("fp32", "auto: measurements are exact")
    if hardware == "none":
        return PrecisionDecision("fp32", f"auto: this {_kind(device)} does not multiply bf16")
    return PrecisionDecision("fp32", f"auto: bf16 does not make an {loop} faster on every such {_kind(device)}")


def attack_loop(models: Iterable[RobustClassifier]) -> Loop:
    """Which loop an attack on these classifiers is: "unfolded attack" where one could not be traced to be folded."""
    return "unfolded attack" if any(map(_keeps_batch_norms, models)) else "attack"


def _keeps_batch_norms(model: RobustClassifier) -> bool:
    if isinstance(model.network, fx.GraphModule):
        return False
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.network.modules())


def bf16_hardware(device: torch.device) -> Hardware:
    """What multiplies bf16 on the device; tests put another function here to stand on another machine."""
    if device.type == "cuda":
        return "cuda" if torch.cuda.get_device_capability(device) >= (8, 0) else "none"
    if device.type != "cpu":
        return "none"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older releases lack it: fp32 is safe
    if capabilities.get("amx_bf16"):
        return "amx"
    return "avx512_bf16" if capabilities.get("avx512_bf16") else "none"


def _kind(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else "GPU" if device.type == "cuda" else f"{device.type} device"


def place(model: RobustClassifier, device: torch.device, precision: Precision) -> RobustClassifier:
    """The model on the device, in the memory format that its network takes, computing in the precision."""
    model.precision = precision
    model.to(device)
    return model.to(memory_format=model.memory_format)


@contextmanager
def exact_fp32() -> Iterator[None]:
    """No TF32 inside: by default torch convolves float32 on CUDA with 10 bits of mantissa. Settings return as found."""
    found = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = found
