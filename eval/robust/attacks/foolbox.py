"""foolbox's attacks in l2 and linf, by class name."""

import inspect
from typing import Any

from torch import Tensor, nn

from eval.robust.attacks.budget import Budget, Plan
from eval.robust.attacks.library import check_class_name, check_norm, constructor_settings, import_library, plan_runs

WORDS = {"steps": ("steps",), "step_size": ("abs_stepsize",), "random_start": ("random_start",)}
# They need a target, a starting point or other images.
NOT_ON_THEIR_OWN = {"BinarizationRefinementAttack", "DatasetAttack", "GenAttack", "PointwiseAttack"}
DISTANCES = {"l2": "l2", "linf": "linf"}  # ours -> foolbox.distances


def plan(class_name: str, budget: Budget) -> Plan:
    """Runs of the class called class_name, against misclassification.

    What a minimum-norm attack found is taken as it is, not shortened to eps: an image counts as broken only where it
    lies in the ball.
    """
    name = f"foolbox:{class_name}"
    foolbox = import_library("foolbox", 'pip install "bigroc[attacks]"')
    classes = _classes(foolbox)
    check_class_name("foolbox", class_name, classes)
    constructor = classes[class_name]
    given = constructor_settings(name, constructor, budget, WORDS)
    accepted = inspect.signature(constructor).parameters
    if "distance" in accepted:
        given["distance"] = getattr(foolbox.distances, DISTANCES[budget.norm])
    if "constraint" in accepted:
        given["constraint"] = budget.norm
    attack = constructor(**given)
    check_norm(name, _norms(foolbox, attack, budget), budget)

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        found, _, _ = attack(bounded, x, foolbox.criteria.Misclassification(y), epsilons=budget.eps)
        return found

    return plan_runs("foolbox", constructor, {"eps": budget.eps, **given}, budget, run)


def _classes(foolbox: Any) -> dict[str, type]:
    kinds = (foolbox.attacks.base.FixedEpsilonAttack, foolbox.attacks.base.MinimizationAttack)
    return {
        name: found
        for name, found in vars(foolbox.attacks).items()
        if inspect.isclass(found) and issubclass(found, kinds) and name not in NOT_ON_THEIR_OWN
    }


def _norms(foolbox: Any, attack: Any, budget: Budget) -> tuple[str, ...]:
    """The geometry of an instance, in our words where we have one."""
    ours = {id(getattr(foolbox.distances, theirs)): norm for norm, theirs in DISTANCES.items()}
    return (ours.get(id(attack.distance), str(attack.distance)),)
