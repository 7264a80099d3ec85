"""bigroc train|refine|eval|models|study|survey|recipes ...: one command over the four packages.

Nothing is imported before it is needed: what shows versions, recipes or the list of commands starts at once.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]  # the folder that holds this package and the four others

EXAMPLES = """\
  bigroc refine --ckpt cifar10-l2-small --input IMAGES --out refined.npz --eps 3
  bigroc train --config cifar_l2_small.yaml
  bigroc eval quality --images refined.npz --reference train.npz --features classifier:cifar10-standard-small
  bigroc models inspect CHECKPOINT.pt
  bigroc recipes
  torchrun --nproc-per-node 8 --no-python bigroc refine ...     (several GPUs; also train, eval and study)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`bigroc ARGUMENTS`: the exit status."""
    leave_out_current_folder()
    from robust_models.runtime.signals import leave_on_signals

    leave_on_signals()  # before the imports of the next line, which take a while
    from robust_models.runtime.command import run

    return run(front_door(), argv)


def main_of_train() -> int:
    """The console script bigroc-train: `bigroc train`."""
    return main(["train", *sys.argv[1:]])


def main_of_refine() -> int:
    """The console script bigroc-refine: `bigroc refine`."""
    return main(["refine", *sys.argv[1:]])


def main_of_eval() -> int:
    """The console script bigroc-eval: `bigroc eval`."""
    return main(["eval", *sys.argv[1:]])


def leave_out_current_folder() -> None:
    """Python no longer looks for packages in the current folder: a train.py or an eval/ there is the user's own.

    `python -m` and some PYTHONPATHs put that folder first. In a checkout that is not installed, it stays.
    """
    here = Path.cwd()
    if here != HOME:
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]


@dataclass(frozen=True)
class LazyCommand:
    """A command of another package, imported when it is called."""

    about: str
    where: str  # module:NAME

    def __call__(self, argv: Sequence[str]) -> int:
        return self.load()(argv)

    def load(self) -> Any:
        """The Command, OneOf or function itself."""
        module, name = self.where.split(":")
        return getattr(import_module(module), name)


COMMANDS = {
    "refine": LazyCommand("Improve images with a robust classifier (BIGRoC), or make new ones.", "refine.cli:REFINE"),
    "train": LazyCommand("Adversarial training of a robust classifier.", "train.cli:TRAIN"),
    "eval": LazyCommand("Robust accuracy of classifiers; FID, IS, KID and more of images.", "eval.cli:EVAL"),
    "models": LazyCommand("Inspect, convert, measure, share and list checkpoints.", "eval.leaderboard.cli:MODELS"),
    "study": LazyCommand("A grid of classifiers and refinements, with its report.", "eval.study.cli:STUDY"),
    "survey": LazyCommand("Ask people which of two images looks more real.", "eval.survey.cli:SURVEY"),
    "studio": LazyCommand("A local page on which you change images live.", "refine.studio.cli:STUDIO"),
    "recipes": LazyCommand("The recipes of --config: what each does, costs and scores.", "bigroc.recipes:RECIPES"),
    "completion": LazyCommand("Print the script that completes words in bash or zsh.", "bigroc.completion:COMPLETION"),
}


def front_door() -> Any:
    """The OneOf of all commands."""
    from robust_models.runtime.command import OneOf

    about = "Robust classifiers: train them, refine images with them, measure both."
    return OneOf("bigroc", about, "command", COMMANDS, EXAMPLES, version=_version)


def _version() -> str:
    from robust_models.runtime.version import git_revision, version

    return f"bigroc {version()} (git {git_revision()})"
