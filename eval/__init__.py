"""Measures classifiers and image sets."""
