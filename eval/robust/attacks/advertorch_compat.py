"""advertorch 0.2.3 on today's torch."""

import importlib
from types import ModuleType

from torch import Tensor

from eval.robust.attacks.library import import_library


def import_advertorch() -> ModuleType:
    """advertorch.attacks. UserError where the package is missing.

    Its FAB imports a function that torch 1.9 dropped. The function is there during the import, and torch is then as it
    was. The module comes through importlib: the attribute torch.autograd.gradcheck is a function of the same name.
    """
    gradcheck = importlib.import_module("torch.autograd.gradcheck")
    if hasattr(gradcheck, "zero_gradients"):
        return _import()
    gradcheck.__dict__["zero_gradients"] = zero_gradients
    try:
        return _import()
    finally:
        del gradcheck.__dict__["zero_gradients"]


def _import() -> ModuleType:
    return import_library("advertorch.attacks", 'pip install "bigroc[attacks]"')


def zero_gradients(x: Tensor) -> None:
    """Forget the gradient that x has collected."""
    if x.grad is not None:
        x.grad.detach_().zero_()
