"""Changes images with a robust classifier."""

from refine.bigroc import bigroc, pseudo_labels, trajectory
from refine.ensemble import Ensemble, consensus, together
from refine.losses import LOSSES
from refine.refiner import Refiner, refine

__all__ = ["LOSSES", "Ensemble", "Refiner", "bigroc", "consensus", "pseudo_labels", "refine", "together", "trajectory"]
