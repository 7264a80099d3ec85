"""What pyproject.toml cannot say: each build records the git revision that it was made from."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
RECORD = "robust_models/_revision.txt"  # read by robust_models/runtime/version.py; never in a checkout


def revision() -> str:
    """What an unpacked sdist was made from, else what git says of this checkout, else "unknown"."""
    if (ROOT / RECORD).exists():
        return (ROOT / RECORD).read_text()
    if not (ROOT / ".git").exists():
        return "unknown\n"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class BuildPackages(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install runs from the checkout, where git knows
            (Path(self.build_lib) / RECORD).write_text(revision())


class SourceArchive(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / RECORD).write_text(revision())


setup(cmdclass={"build_py": BuildPackages, "sdist": SourceArchive})
