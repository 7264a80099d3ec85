"""Networks by name."""

from robust_models.architectures.registry import ACTIVATIONS, build

__all__ = ["ACTIVATIONS", "build"]
