"""Changes images with a robust classifier."""

from refine.bigroc import bigroc, pseudo_labels, refine

__all__ = ["bigroc", "pseudo_labels", "refine"]
