"""Fixtures most tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from robust_models import RobustClassifier, save
from tests.tiny import tiny_classifier, tiny_pixels

settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def classifier() -> RobustClassifier:
    return tiny_classifier()


@pytest.fixture
def checkpoint(classifier: RobustClassifier, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save(classifier, path)
    return path


@pytest.fixture
def labelled_npz(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.npz"
    pixels, labels = tiny_pixels(96)
    np.savez(path, arr_0=pixels, arr_1=labels)
    return path
