"""AutoAttack's members, as pyautoattack has them. Croce & Hein 2020, arXiv:2003.01690.

Its own loop is left aside for ours: same images in the same batches, so the same result to the bit, but with a state
that can be resumed (pyautoattack 0.2.0 writes one that it then refuses to read) and several radii in one chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eval.robust.attacks.budget import Attempt, Budget, Plan
from eval.robust.attacks.library import PlainLayout, global_randomness, import_library
from robust_models import UserError

MemberName = Literal["apgd-ce", "apgd-t", "fab", "fab-t", "square"]
NORMS = {"l2": "L2", "linf": "Linf", "l1": "L1"}
TARGETS = 9  # the standard's number of target classes, on data with at least 10; apgd-t in l1 has
TARGETS_L1 = 5
LEAST_CLASSES = 4  # the targeted DLR loss looks at the four largest logits


# By name, its members in their order. fab-t and square cost most of the time and rarely change the number: for
# development there is apgd. Members without a target take any number of classes, from two on.
ENSEMBLES: dict[str, Sequence[MemberName]] = {
    "apgd": ("apgd-ce", "apgd-t"),
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "apgd-ce": ("apgd-ce",),
    "fab": ("fab",),
    "square": ("square",),
}
TARGETED = ("apgd-t", "fab-t")


def plan(name: str, budget: Budget) -> Plan:
    """The members of the ensemble called `name`. UserError for settings other than the standard's, or few classes."""
    members = ENSEMBLES[name]
    for field, value, default in (
        ("steps", budget.steps, None),
        ("step_size", budget.step_size, None),
        ("restarts", budget.restarts, 1),
        ("random_start", budget.random_start, True),
    ):
        if value != default:
            raise UserError(f"{field}: {value} does not fit attack {name}, whose settings are fixed; leave it out")
    if budget.norm not in NORMS:
        raise UserError(f"attack: {name} is an attack in {', '.join(NORMS)}, but norm is {budget.norm}")
    if budget.num_classes < LEAST_CLASSES and set(members) & set(TARGETED):
        raise UserError(
            f"attack: {name} needs at least {LEAST_CLASSES} classes for its targeted loss; the classifier has "
            f"{budget.num_classes}; --attack apgd-ce, fab, square and pgd take any number"
        )
    import_library("pyautoattack", 'pip install "bigroc[attacks]"')
    attempts: dict[str, Attempt] = {member: Member(member, budget) for member in members}
    settings = {
        "members": list(members),
        **({"target_classes": _targets(members[1], budget)} if set(members) & set(TARGETED) else {}),
        "library": f"pyautoattack {version('pyautoattack')}",
    }
    return Plan(attempts, settings)


def _targets(member: str, budget: Budget) -> int:
    """How many classes the member aims at."""
    standard = TARGETS_L1 if budget.norm == "l1" and member == "apgd-t" else TARGETS
    return min(standard, budget.num_classes - 1)


@dataclass(frozen=True)
class Member:
    """One attack of the ensemble with the standard's settings; it seeds itself anew for each batch."""

    name: MemberName
    budget: Budget

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        with global_randomness((self.budget.seed,), x.device), torch.no_grad():
            return self._attack(PlainLayout(model), x.device).perturb(x.clone(), y.clone())

    def _attack(self, model: nn.Module, device: torch.device) -> Any:
        from pyautoattack import AutoAttack

        ensemble = AutoAttack(
            model,
            norm=NORMS[self.budget.norm],  # type: ignore[arg-type]  (a literal there)
            eps=self.budget.eps,
            seed=self.budget.seed,
            version="standard",
            device=device,
        )
        targets = _targets(self.name, self.budget)
        match self.name:
            case "apgd-ce":
                ensemble.apgd.loss = "ce"
                return ensemble.apgd
            case "apgd-t":
                ensemble.apgd_targeted.n_target_classes = targets
                return ensemble.apgd_targeted
            case "fab" | "fab-t":
                ensemble.fab.targeted = self.name == "fab-t"
                ensemble.fab.n_target_classes = targets
                return ensemble.fab
            case _:
                return ensemble.square
