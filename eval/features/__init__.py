"""Feature spaces by name: uint8 images in, float32 features out, with everything a number needs beside it."""

from eval.features.extractor import FeatureExtractor, open_features

__all__ = ["FeatureExtractor", "open_features"]
