"""All that a run needs to go on where it stopped, in one file beside the checkpoint, and the one before it."""

import io
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from robust_models.errors import UserError
from robust_models.runtime.config import as_plain, resolve
from robust_models.runtime.device import PrecisionDecision
from robust_models.runtime.files import sweep_partials, whole_file, write_json
from robust_models.runtime.version import environment
from train.config import TrainConfig

FILE_NAME, PREVIOUS_NAME = "state.pt", "state.previous.pt"
FREE_TO_CHANGE = ("out", "device", "save_minutes")  # between a run and its continuation


@dataclass
class Progress:
    """Where the run is: plain numbers, the same on every machine."""

    step: int = 0  # optimizer steps done
    reported: int = 0  # the step after which all that was due is done: rows written, classifier judged
    wall_s: float = 0.0
    best: float = -1.0  # highest selection score so far
    best_scores: dict[str, float] = field(default_factory=dict)
    without_better: int = 0  # evaluations since then
    best_refined: float = math.inf  # smallest distance of refined images so far
    best_refined_scores: dict[str, float] = field(default_factory=dict)
    least_attack_steps: int = 0  # what the guard demands
    # objective energy: by how many steps its climbs have grown, the AUCs since then, and what the last step measured
    longer: int = 0
    aucs: list[float] = field(default_factory=list)
    energy: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainState:
    """What state.pt holds: tensors and plain values only."""

    progress: Progress
    model: dict[str, Any]
    ema: dict[str, Any]
    optimizer: dict[str, Any]
    pending: list[Any]  # measurements since the last row of metrics


def save_state(folder: Path, state: TrainState) -> None:
    """Replaces the last state, which is kept as the one before."""
    buffer = io.BytesIO()
    torch.save(vars(state) | {"progress": asdict(state.progress)}, buffer)
    path = folder / FILE_NAME
    with whole_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())  # here, so that a full disk is an OSError
        if path.exists():
            path.replace(folder / PREVIOUS_NAME)


def load_state(folder: Path) -> TrainState | None:
    """The last state that is whole, None where none was saved; only tensors and plain values are read."""
    paths = [path for path in (folder / FILE_NAME, folder / PREVIOUS_NAME) if path.exists()]
    for path in paths:
        if _is_whole(path):
            entries = torch.load(path, map_location="cpu", weights_only=True)
            return TrainState(**entries | {"progress": Progress(**entries["progress"])})
        print(f"{path}: cut off or damaged, passed over", file=sys.stderr)
    if paths:
        raise UserError(f"out: {folder} has no whole state to go on from; choose another --out, or empty it")
    return None


def claim(config: TrainConfig, precision: PrecisionDecision, warnings: Sequence[str] = ()) -> TrainState | None:
    """The state to go on from, None at the start of a run; config.json then says what the run is.

    UserError where config.out holds another run.
    """
    plain = as_plain(config)
    recorded = config.out / "config.json"
    if recorded.exists():
        old = _with_defaults(json.loads(recorded.read_text())["config"])
        changed = [name for name in plain if name not in FREE_TO_CHANGE and old.get(name) != plain[name]]
        if changed == ["epochs"]:
            _check_extension(config, old["epochs"])
        elif changed:
            name = changed[0]
            raise UserError(
                f"out: {config.out} holds a run with another {name} ({old.get(name)} there, {plain[name]} now); "
                f"choose another --out, or repeat that run's command to continue it"
            )
    sweep_partials(config.out)
    write_json(
        recorded, {"config": plain, **precision.summary(), "warnings": list(warnings), "environment": environment()}
    )
    return load_state(config.out)


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """A config that was written when there were fewer fields, with the defaults of those that came since."""
    try:
        return as_plain(resolve(TrainConfig, recorded))
    except UserError:
        return recorded


def _check_extension(config: TrainConfig, epochs: int) -> None:
    """UserError unless a longer run would have done the same in the `epochs` of the run in config.out.

    It would where nothing depends on the finished share of the run. A cosine or one_cycle schedule has brought the
    learning rate down to 0 by the end of those epochs, where a longer run would have it high still.
    """
    attack = config.attack
    spread = [f"attack.{name}" for name in ("eps", "step_size", "steps") if isinstance(getattr(attack, name), dict)]
    spread += [
        f"energy.{name}" for name in ("weight", "auc", "most_steps") if isinstance(getattr(config.energy, name), dict)
    ]
    spread += ["resize"] if isinstance(config.resize, dict) else []
    if config.optimizer.schedule not in ("step", "constant"):
        spread.insert(0, f"optimizer.schedule {config.optimizer.schedule}")
    if spread:
        raise UserError(
            f"epochs: {epochs} in {config.out}, {config.epochs} now, but {spread[0]} is spread over the whole run, so "
            "that its length cannot change; for a further run from its classifier, repeat the same command with "
            f"--init {config.out}/classifier.safetensors --out ANOTHER"
        )
    if config.epochs < epochs:
        raise UserError(f"epochs: {config.out} has {epochs}, more than {config.epochs}; choose another --out")


def _is_whole(path: Path) -> bool:
    """By the checksums in it: torch.save writes a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
