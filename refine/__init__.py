"""Changes images with a robust classifier."""

from refine.bigroc import LOSSES, bigroc, pseudo_labels, trajectory
from refine.network import Ensemble, consensus, together
from refine.refiner import Refiner, refine

__all__ = ["LOSSES", "Ensemble", "Refiner", "bigroc", "consensus", "pseudo_labels", "refine", "together", "trajectory"]
