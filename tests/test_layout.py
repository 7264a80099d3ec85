"""The house rules: imports point down and never in a circle, packages are listed, and a batch's path is short."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny_pixels

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "robust_models": {"robust_models"},
    "train": {"train", "robust_models"},
    "refine": {"refine", "robust_models"},
    "eval": {"eval", "train", "refine", "robust_models"},
    "bigroc": {"bigroc", "eval", "train", "refine", "robust_models"},
}
# The rooms of a package, the highest first: each may import those after it. Files beside the rooms are not ordered here
# (no circle among files is what holds for them).
FLOORS = {
    "robust_models": ("features", "checkpoints", "architectures", "datasets", "images", "metrics", "runtime"),
    "train": ("loaders",),
    "refine": ("studio", "synthesis", "generators"),
    "eval": ("study", "survey", "quality", "gradients", "certify", "robust"),
