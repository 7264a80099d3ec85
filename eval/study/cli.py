"""bigroc study --config RECIPE.yaml [--quick] [--cell I/N | --merge] [--field value ...]"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import yaml

from eval.study.config import StudyConfig, folder_of, recipe_values
from eval.study.grid import Share
from eval.study.summary import format_study
from robust_models.errors import UserError
from robust_models.runtime.command import Command, OneLineParser, Summary
from robust_models.runtime.config import as_json, as_plain, read_recipe, resolve

EXAMPLES = """\
  bigroc study --config ablation_classifier.yaml --quick
  bigroc study --config ablation_eps.yaml --images '[{name: mine, path: IMAGES}]' --out runs/studies/mine
  torchrun --nproc-per-node 8 --no-python bigroc study --config ablation_classifier.yaml ...     (ranks share the jobs)
  bigroc study --config ablation_classifier.yaml ... --cell 3/16              (one share, for a batch system)
  bigroc study --config ablation_classifier.yaml ... --merge                  (what the shares have found)
The same command run again continues where it stopped, and computes nothing that is done. Exit status 1: cells failed,
or with --merge are missing.
"""

AUGMENTATION = "augmentation"  # what the field `study` of such a recipe says


@dataclass(frozen=True)
class StudyCommand(Command):
    """A Command with more to say than a config: which part of the study to do, and whether all of it went well."""

    def __call__(self, argv: Sequence[str]) -> int:
        if _kind(argv) == AUGMENTATION:
            return self.variants()[0](argv)
        flags = vars(self.parser().parse_args(argv))
        own = {name: flags.pop(name) for name in ("config", "quick", "cell", "merge", "dry_run", "json", "debug")}
        if own["cell"] is not None and own["merge"]:
            raise UserError("merge: does not go with --cell; run it once, after all shares")
        config = resolve(self.schema, recipe_values(own["config"], quick=own["quick"]), flags)

        from eval.study.run import Part, run_study

        if own["dry_run"]:
            _print_grid(config, in_json=own["json"])
            return 0
        share = None if own["cell"] is None else Share.parse(own["cell"])
        command = shlex.join(["bigroc", "study", *argv])
        summary = run_study(config, Part(share, own["merge"]), command=command)
        if summary is None:
            return 0  # a rank that has helped; the first one reports
        print(as_json(summary) if own["json"] else self.format_summary(summary), flush=True)
        return 1 if summary["failed"] or (own["merge"] and summary["missing"]) else 0

    def variants(self) -> Sequence[Command]:
        """The study that a recipe with `study: augmentation` asks for."""
        from eval.study.augmentation.cli import AUGMENTATION_STUDY

        return [AUGMENTATION_STUDY]

    def add_command_flags(self, parser: OneLineParser) -> None:
        super().add_command_flags(parser)
        group = parser.command_line
        group.add_argument("--quick", action="store_true", help="the recipe's quick form: minutes on a laptop")
        group.add_argument("--cell", metavar="I/N", help="run the I-th of N shares of the jobs, and write no report")
        group.add_argument("--merge", action="store_true", help="run nothing: report what is there, say what is not")


def _kind(argv: Sequence[str]) -> str | None:
    """What the recipe in argv says it is a study of: its field `study`; None is refinement."""
    words = dict(pairwise(word for part in argv for word in part.split("=", 1)))
    return read_recipe(words["--config"]).get("study") if "--config" in words else None


def _print_grid(config: StudyConfig, *, in_json: bool) -> None:
    from eval.study.run import open_study
    from robust_models.runtime.distributed import Ranks

    study = open_study(config, Ranks())
    jobs = study.jobs()
    found = {
        "cells": len(study.cells),
        "cells_done": sum(job.place.done.exists() for job in jobs if job.place.kind == "cells"),
        "classifiers": len(config.classifiers),
        "classifiers_done": sum(job.place.done.exists() for job in jobs if job.place.kind == "classifiers"),
        "to_train": sum(not job.place.done.exists() for job in study.trainings.values()),
    }
    if in_json:
        print(as_json({**found, "config": as_plain(config)}))
        return
    yaml.safe_dump(as_plain(config), sys.stdout, sort_keys=False)
    print(
        f"# {found['cells']} cells, {found['cells_done']} of them done; {found['classifiers']} classifiers, "
        f"{found['classifiers_done']} of them measured, {found['to_train']} to train"
    )


def _run_whole(config: StudyConfig) -> Summary:
    from eval.study.run import run_study

    return run_study(config) or {}


STUDY = StudyCommand(
    name="bigroc study",
    about="A grid of classifiers, image sets and refinement settings, and its report.",
    schema=StudyConfig,
    work=_run_whole,
    format_summary=format_study,
    examples=EXAMPLES,
    defaults=folder_of,
    needs_recipe=True,
)
