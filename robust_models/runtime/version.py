"""Which bigroc this is, and what else a number needs beside it to be repeated: versions, revision, machine."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.resources import files
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]


def version() -> str:
    """The version of the installed distribution, "0.1.0"; "unknown" where the packages were only put on the path."""
    try:
        return installed_version("bigroc")
    except PackageNotFoundError:
        return "unknown"


def git_revision() -> str:
    """The revision of the code that runs, as `git describe --always --dirty` has it; "unknown" where nothing says it.

    A built distribution brings its own (setup.py). Anything else is a checkout, of which git is asked: not of whatever
    repository an environment happens to lie in.
    """
    record = files("robust_models") / "_revision.txt"
    if record.is_file():
        return record.read_text().strip()
    if not (_CHECKOUT / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions(*packages: str) -> dict[str, str]:
    """Of torch, numpy and bigroc, and of those of the named packages that are installed."""
    import numpy as np
    import torch

    found = {"bigroc": version(), "torch": str(torch.__version__), "numpy": np.__version__}  # torch's with its build
    for package in packages:
        try:
            found[package] = installed_version(package)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """The versions that training and refining depend on, the revision of the code, and the machine in words."""
    import torch

    return {
        "python": platform.python_version(),
        **versions("torchvision"),
        "git_revision": git_revision(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
