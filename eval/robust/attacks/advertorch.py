"""advertorch's attacks in l2 and linf, by class name; its last release (0.2.3) on today's torch."""

import importlib
from types import ModuleType

from torch import Tensor, nn

from eval.robust.attacks.budget import Budget, Plan
from eval.robust.attacks.library import check_class_name, check_norm, constructor_settings, import_library, plan_runs

WORDS = {
    "eps": ("eps",),
    "steps": ("nb_iter", "n_iter", "max_iterations"),
    "step_size": ("eps_iter",),
    "random_start": ("rand_init",),
    "num_classes": ("num_classes",),
}
# The library is finished, so this is all. Left out: L1, L0, rotations, and those that need a target or a guide.
NORMS = {
    "CarliniWagnerL2Attack": ("l2",),
    "DDNL2Attack": ("l2",),
    "FABAttack": ("l2", "linf"),
    "FGM": ("l2",),
    "FGSM": ("linf",),
    "GradientAttack": ("l2",),
    "GradientSignAttack": ("linf",),
    "L2BasicIterativeAttack": ("l2",),
    "L2FABAttack": ("l2",),
    "L2MomentumIterativeAttack": ("l2",),
    "L2PGDAttack": ("l2",),
    "LinfBasicIterativeAttack": ("linf",),
    "LinfFABAttack": ("linf",),
    "LinfMomentumIterativeAttack": ("linf",),
    "LinfPGDAttack": ("linf",),
    "LinfSPSAAttack": ("linf",),
    "MomentumIterativeAttack": ("l2", "linf"),
    "PGDAttack": ("l2", "linf"),
}
# Classes for both norms, and the settings that choose one.
GEOMETRY = {
    "FABAttack": {"l2": {"norm": "L2"}, "linf": {"norm": "Linf"}},
    "MomentumIterativeAttack": {"l2": {"ord": 2}, "linf": {"ord": float("inf")}},
    "PGDAttack": {"l2": {"ord": 2}, "linf": {"ord": float("inf")}},
}


def plan(class_name: str, budget: Budget) -> Plan:
    """Runs of the class called class_name; its defaults are untargeted, pixels in [0,1], losses summed over images."""
    name = f"advertorch:{class_name}"
    check_class_name("advertorch", class_name, NORMS)
    check_norm(name, NORMS[class_name], budget)
    constructor = getattr(import_advertorch(), class_name)
    given = constructor_settings(name, constructor, budget, WORDS) | GEOMETRY.get(class_name, {}).get(budget.norm, {})

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return constructor(model, **given).perturb(x, y)

    return plan_runs("advertorch", constructor, given, budget, run)


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
