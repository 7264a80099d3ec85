"""bigroc study --config augmentation.yaml [--quick] [--field value ...]"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from eval.study.augmentation.config import AugmentationConfig
from eval.study.config import folder_of, recipe_values
from robust_models.runtime.command import Command, OneLineParser, Summary
from robust_models.runtime.config import as_json, as_plain, resolve

EXAMPLES = """\
  bigroc study --config augmentation.yaml --quick
  bigroc study --config augmentation.yaml --amounts 500,2000 --added '[{name: mine, path: IMAGES}]'
  torchrun --nproc-per-node 8 --no-python bigroc study --config augmentation.yaml          (ranks share the classifiers)
The same command run again continues where it stopped, also inside a training. Exit status 1: classifiers failed.
"""


@dataclass(frozen=True)
class AugmentationCommand(Command):
    """A Command with a quick form of its recipe."""

    def __call__(self, argv: Sequence[str]) -> int:
        flags = vars(self.parser().parse_args(argv))
        own = {name: flags.pop(name) for name in ("config", "quick", "dry_run", "json", "debug")}
        values = recipe_values(own["config"], quick=own["quick"])
        values.pop("study", None)
        config = resolve(self.schema, values, flags)

        from eval.study.augmentation.run import open_augmentation, run_augmentation
        from robust_models.runtime.distributed import Ranks

        if own["dry_run"]:
            study = open_augmentation(config, Ranks())
            yaml.safe_dump(as_plain(config), sys.stdout, sort_keys=False)
            print(f"# {len(study.cells)} classifiers of {config.updates} steps each")
            return 0
        summary = run_augmentation(config, command=shlex.join(["bigroc", "study", *argv]))
        if summary is None:
            return 0  # a rank that has helped; the first one reports
        print(as_json(summary) if own["json"] else self.format_summary(summary), flush=True)
        return 1 if summary["failed"] else 0

    def add_command_flags(self, parser: OneLineParser) -> None:
        super().add_command_flags(parser)
        parser.command_line.add_argument("--quick", action="store_true", help="the recipe's quick form: minutes")


def _run_whole(config: Any) -> Summary:
    from eval.study.augmentation.run import run_augmentation

    return run_augmentation(config) or {}


def _format(summary: Summary) -> str:
    from eval.study.augmentation.summary import format_augmentation

    return format_augmentation(summary)


AUGMENTATION_STUDY = AugmentationCommand(
    name="bigroc study --config augmentation.yaml",
    about="Classifiers trained on little real data and a generator's samples, raw or refined.",
    schema=AugmentationConfig,
    work=_run_whole,
    format_summary=_format,
    examples=EXAMPLES,
    defaults=folder_of,
    needs_recipe=True,
)
