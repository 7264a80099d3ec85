"""Files that an original package writes, in a process of its own, and its logits beside ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_models import RobustClassifier

ROOT = Path(__file__).parents[2]


def written_by(package: str, out: Path, *which: str) -> tuple[Path, dict[str, Tensor]]:
    """Runs tests.oracles.write_PACKAGE OUT [WHICH]: the folder of files; "x", and the logits by the file's name."""
    folder = ROOT / ".venv" / "oracles" / package
    if not folder.is_dir():
        pytest.skip(f"the package {package} is not there; `make oracles` installs it")
    command = [sys.executable, "-m", f"tests.oracles.write_{package}", str(out), *which]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return out, torch.load(out / "expected.pt")


@torch.no_grad()
def assert_same(model: RobustClassifier, x: Tensor, expected: Tensor) -> None:
    """Logits within 1e-5 of the largest, in float32."""
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().mean() > 0.01 * scale, "the oracle hardly looks at its images"
    assert (model(x) - expected).abs().max() <= 1e-5 * max(1, scale)
