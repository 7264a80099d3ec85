"""Feature spaces by name: uint8 images in, float32 features out, with everything a number needs beside it."""

from robust_models.features.extractor import FeatureExtractor, open_features

__all__ = ["FeatureExtractor", "open_features"]
