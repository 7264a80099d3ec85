"""Fixtures most tests share.

BIGROC_TEST_BF16=0 or 1 in the environment lets every test believe that its CPU does not, or does, multiply bf16.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from robust_models import RobustClassifier, save
from robust_models.runtime import device
from robust_models.runtime.device import Hardware
from tests.tiny import tiny_classifier, tiny_pixels

settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    if (kind := os.environ.get("BIGROC_TEST_BF16")) is not None:
        stand_on(("none", "avx512_bf16")[int(kind)], monkeypatch)


@pytest.fixture(params=["none", "avx512_bf16"])
def each_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """The test runs twice: on a CPU that does not multiply bf16, and on one that does."""
    stand_on(request.param, monkeypatch)
    return request.param


def stand_on(hardware: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, devices of this process look as if they had this hardware."""
    monkeypatch.setattr(device, "bf16_hardware", lambda _: hardware)


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


@pytest.fixture(params=["tmpfs", pytest.param("loop device", marks=pytest.mark.slow)])
def tiny_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, in memory or ext4 on a loop device; skips where it cannot be made or mounted."""
    disk, image = tmp_path / "disk", tmp_path / "disk.img"
    disk.mkdir()
    in_memory = request.param == "tmpfs"
    if in_memory:
        commands = [f"mount -t tmpfs -o size=24m tmpfs {disk}"]
    else:
        commands = [f"truncate -s 24M {image}", f"mkfs.ext4 -q -m 0 {image}", f"mount -o loop {image} {disk}"]
    for command in commands:
        try:
            made = subprocess.run(command.split(), capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"no {command.split()[0]} here")
        if made.returncode:
            pytest.skip(f"may not mount a file system here ({command.split()[0]})")
    if not in_memory:
        (disk / "lost+found").rmdir()
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
