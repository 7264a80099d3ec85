"""Changes images with a robust classifier."""

from typing import TYPE_CHECKING

from robust_models.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from refine.guidance import Guidance
    from refine.method import LOSSES, bigroc, class_means, pseudo_labels, trajectory
    from refine.network import Ensemble, consensus, together
    from refine.refiner import Refiner, refine

__all__ = [
    "LOSSES",
    "Ensemble",
    "Guidance",
    "Refiner",
    "bigroc",
    "class_means",
    "consensus",
    "pseudo_labels",
    "refine",
    "together",
    "trajectory",
]

__getattr__ = lazy_names(
    __name__,
    {
        "refine.guidance": ("Guidance",),
        "refine.method": ("LOSSES", "bigroc", "class_means", "pseudo_labels", "trajectory"),
        "refine.network": ("Ensemble", "consensus", "together"),
        "refine.refiner": ("Refiner", "refine"),
    },
)
