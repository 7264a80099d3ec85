"""The name of an attack -> its attempts."""

import difflib
from collections.abc import Callable
from functools import partial

from eval.robust.attacks import advertorch, autoattack, foolbox, torchattacks
from eval.robust.attacks.budget import Budget, Plan
from eval.robust.seeded_pgd import SeededPGD
from robust_models import PGD, UserError


def plan_attack(name: str, budget: Budget) -> Plan:
    """What the attack called `name` does within the budget. UserError for a name, norm or setting that does not fit.

    "pgd"         ours: random starts that belong to the image, whatever the batch size
    "apgd"        apgd-ce and apgd-t of AutoAttack, for development
    "autoattack"  the standard ensemble: apgd-ce, apgd-t, fab-t, square. Croce & Hein 2020, arXiv:2003.01690
    "apgd-ce", "fab", "square"  one member, without targets: of classifiers of fewer than four classes too
    "LIBRARY:CLASS" with advertorch, foolbox or torchattacks: their class, steps and sizes in our units
    """
    check_attack_name(name)
    library, _, class_name = name.partition(":")
    return LIBRARIES[library](class_name, budget) if class_name else PLAIN[name](budget)


def check_attack_name(name: str) -> None:
    """UserError for a name that cannot be one; whether the library has the class is seen when it is opened."""
    library, colon, class_name = name.partition(":")
    known = library in LIBRARIES and bool(class_name) if colon else name in PLAIN
    if known:
        return
    names = [*PLAIN, *(f"{library}:CLASS" for library in LIBRARIES)]
    near = difflib.get_close_matches(library, [*PLAIN, *LIBRARIES], n=1)
    hint = f"; did you mean {next(full for full in names if full.startswith(near[0]))}?" if near else ""
    raise UserError(f"attack: {name!r} is none of {', '.join(names)}{hint}")


def _pgd(budget: Budget) -> Plan:
    attack = PGD(
        budget.eps,
        budget.ascent_step_size,
        budget.ascent_steps,
        norm=budget.norm,
        random_start=budget.random_start,
    )
    attempts = {f"run {i + 1}": SeededPGD(attack, budget.seed, i, budget.early_stop) for i in range(budget.restarts)}
    settings = {
        "steps": attack.steps,
        "step_size": attack.step_size,
        "random_start": attack.random_start,
        "early_stop": budget.early_stop,
    }
    return Plan(attempts, settings)


PLAIN: dict[str, Callable[[Budget], Plan]] = {
    "pgd": _pgd,
    **{name: partial(autoattack.plan, name) for name in autoattack.ENSEMBLES},
}
LIBRARIES: dict[str, Callable[[str, Budget], Plan]] = {
    "advertorch": advertorch.plan,
    "foolbox": foolbox.plan,
    "torchattacks": torchattacks.plan,
}
