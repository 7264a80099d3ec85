"""`bigroc models evaluate`: each measurement is a command of its own, kept as JSON beside the words that repeat it.

What is there is not measured again, unless its words or the classifier's bytes are others.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.cli import COMMANDS
from eval.leaderboard.config import EvaluateConfig
from eval.leaderboard.table import Measured, card, leaderboard
from eval.study.commands import as_texts, shell
from eval.study.config import StudyConfig, recipe_values
from eval.study.run import run_study
from robust_models.checkpoints.checks import check_classifier, check_names
from robust_models.checkpoints.flags import file_of
from robust_models.errors import UserError, about_field
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.config import resolve
from robust_models.runtime.files import BUNDLED, check_place, exclusive, located, sha256_of, whole_file
from robust_models.runtime.version import environment

GAINS_RECIPE = "ablation_classifier.yaml"  # whose quick form is the study of the gains


@dataclass(frozen=True)
class Measurement:
    """A part of one classifier, or of all of them, as a command of `bigroc`."""

    part: str
    program: str  # "bigroc eval robust"
    fields: Mapping[str, Any]  # flags by name

    @property
    def command(self) -> str:
        """For a shell."""
        return shell(self.program, self.fields)

    def run(self) -> dict[str, Any]:
        """The command's summary; of a study its cells and judges. UserError for bad input, and where cells failed."""
        flags = {name: text for name, text in as_texts(self.fields).items() if name not in ("config", "quick")}
        if self.part == "gains":
            config = resolve(StudyConfig, recipe_values(self.fields["config"], quick=True), flags)
            summary = run_study(config, command=self.command) or {}
            if summary["failed"]:
                raise UserError(f"gains: {len(summary['failed'])} cells of the study failed; see {config.out}")
            found = json.loads(Path(summary["reports"]["json"]).read_text("utf-8"))
            return {"judges": [found["judge"], *found["other_judges"]], "cells": found["cells"]}
        command = COMMANDS[self.program.split()[-1]]
        assert isinstance(command, Command)
        found = command.work(resolve(command.schema, {}, flags))
        assert found is not None, "one process"
        return found


def run_evaluate(config: EvaluateConfig) -> Summary:
    """Measures what is missing in config.out, writes a card for each classifier there and the leaderboard."""
    check_evaluate(config)
    if config.table is not None:
        with about_field("table"):
            check_place(config.table)
    with exclusive(config.out / "leaderboard"):
        measured = [Measured(name, sha256_of(file_of(name)), dict(_of_one(config, name))) for name in config.names]
        if "gains" in config.parts:
            gains = _kept(_gains(config), config.out, [one.sha256 for one in measured])
            for one in measured:
                one.parts["gains"] = gains
        for one in measured:
            _write(config.out / f"{place_of(one.name)}.md", card(one))
        table = leaderboard(measured)
        for path in filter(None, (config.out / "leaderboard.md", config.table)):
            _write(path, table)
    return {
        "out": str(config.out),
        "table": str(config.table or config.out / "leaderboard.md"),
        "classifiers": [one.name for one in measured],
        "leaderboard": table,
    }


def check_evaluate(config: EvaluateConfig) -> None:
    """UserError for names that no classifier has, and for bundled images that are not there."""
    check_names(config)
    for name in config.names:
        check_classifier(name, field="models")
    for field in ("data", "ood", "images"):
        value = getattr(config, field)
        with about_field(field):
            for path in value if field == "images" else filter(None, [value]):
                located(path)


def place_of(name: str) -> str:
    """A file name for a classifier."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in name)


def _of_one(config: EvaluateConfig, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = config.out / place_of(name)
    for measurement in _measurements(config, name, folder):
        yield measurement.part, _kept(measurement, folder, [sha256_of(file_of(name))])


def _measurements(config: EvaluateConfig, name: str, folder: Path) -> list[Measurement]:
    """Of one classifier, in the order of config.parts."""
    machine = {"limit": config.limit, "device": config.device}
    robust = {"ckpt": name, "data": config.data, **machine}
    attack = {"norm": "l2", "eps": config.eps}
    fields: dict[str, tuple[str, dict[str, Any]]] = {
        "balls": (
            "robust",
            {
                "threats": config.threats,
                "steps": 20,
                "calibration": True,
                "corruptions": config.corruptions,
                "ood": config.ood,
            },
        ),
        "apgd": ("robust", {**attack, "attack": "apgd"}),
        "autoattack": ("robust", {**attack, "attack": "autoattack", "batch_size": 50}),
        "gradients": ("gradients", {"reference": config.reference}),
    }
    return [
        _with_state(Measurement(part, f"bigroc eval {word}", {**robust, **more}), folder)
        for part in config.parts
        if part in fields
        for word, more in [fields[part]]
    ]


def _with_state(measurement: Measurement, folder: Path) -> Measurement:
    """The same, kept in a file from which it goes on; other words have another file."""
    if not measurement.program.endswith("robust"):
        return measurement
    words = hashlib.sha256(measurement.command.encode()).hexdigest()[:8]
    return replace(measurement, fields={**measurement.fields, "state": folder / f"{measurement.part}-{words}.state"})


def _gains(config: EvaluateConfig) -> Measurement:
    """One study of all the classifiers, so that their gains are paired."""
    images = [{"name": Path(spec.removeprefix(BUNDLED)).stem, "path": spec} for spec in config.images]
    fields = {
        "config": GAINS_RECIPE,
        "quick": True,
        "classifiers": json.dumps([{"name": name, "ckpt": name} for name in config.names]),
        "images": json.dumps(images),
        "eps": f"[{','.join(f'{eps:g}' for eps in config.refine_eps)}]",
        "judge": config.judge,
        "weights": config.weights,
        "reference": config.data,
        "reference_images": config.data,
        "data": "null",
        "robust.eps": "{}",
        "device": config.device,
        "out": config.out / "study",
    }
    return Measurement("gains", "bigroc study", fields)


def _kept(measurement: Measurement, folder: Path, sha256: list[str]) -> dict[str, Any]:
    """The measurement's result: from the folder, or measured now and put there."""
    file = folder / f"{measurement.part}.json"
    identity = {"command": measurement.command, "sha256": sha256}
    if file.exists():
        kept = json.loads(file.read_text("utf-8"))
        if {name: kept.get(name) for name in identity} == identity:
            return kept
    print(f"$ {measurement.command}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    result = {**identity, "found": measurement.run(), "environment": environment()}
    _write(file, json.dumps(result, indent=1))
    return result


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, "utf-8")


def format_evaluate(summary: Summary) -> str:
    """The leaderboard, and where it is."""
    return f"{summary['leaderboard']}\ncards and figures: {summary['out']}"
