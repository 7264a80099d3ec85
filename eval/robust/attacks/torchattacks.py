"""torchattacks' attacks in l2 and linf, by class name."""

from torch import Tensor, nn

from eval.robust.attacks.budget import Budget, Plan
from eval.robust.attacks.library import check_class_name, check_norm, constructor_settings, import_library, plan_runs
from robust_models import UserError

WORDS = {
    "eps": ("eps", "max_epsilon"),
    "steps": ("steps", "num_iter_set", "nb_iter"),
    "step_size": ("alpha",),
    "random_start": ("random_start",),
    "num_classes": ("n_classes",),
}
_L2 = ("CW", "DeepFool", "PGDL2", "PGDRSL2")
_LINF = (
    *("BIM", "DIFGSM", "EOTPGD", "FFGSM", "FGSM", "Jitter", "MIFGSM", "NIFGSM", "PGD", "PGDRS", "PIFGSM", "PIFGSMPP"),
    *("RFGSM", "SINIFGSM", "SPSA", "TIFGSM", "TPGD", "UPGD", "VMIFGSM", "VNIFGSM"),
)
_BOTH = {"l2": "L2", "linf": "Linf"}
NORMS = {
    **dict.fromkeys(_L2, ("l2",)),
    **dict.fromkeys(_LINF, ("linf",)),
    **dict.fromkeys(("APGD", "APGDT", "FAB", "Square"), tuple(_BOTH)),
}
SEEDED = ("APGD", "APGDT", "FAB", "Square")  # they seed the global generator themselves, always alike


def plan(class_name: str, budget: Budget) -> Plan:
    """Runs of the class called class_name."""
    name = f"torchattacks:{class_name}"
    if class_name == "AutoAttack":
        raise UserError(
            "attack: torchattacks' AutoAttack runs 10 steps where the standard runs 100, so its figure is not "
            "AutoAttack's; --attack autoattack is the standard"
        )
    check_class_name("torchattacks", class_name, NORMS)
    check_norm(name, NORMS[class_name], budget)
    if class_name in SEEDED and budget.restarts > 1:
        raise UserError(f"restarts: {budget.restarts} runs of {name} would all be the same; leave it at 1")
    library = import_library(
        "torchattacks", "pip install --no-deps torchattacks (it asks for a release of requests that breaks others)"
    )
    constructor = getattr(library, class_name)
    given = constructor_settings(name, constructor, budget, WORDS)
    if len(NORMS[class_name]) > 1:
        given["norm"] = _BOTH[budget.norm]
    if class_name in SEEDED:
        given["seed"] = budget.seed

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return constructor(model, **given)(x, y)

    return plan_runs("torchattacks", constructor, given, budget, run)
