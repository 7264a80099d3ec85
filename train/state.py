"""All that a run needs to go on where it stopped, in one file beside the checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robust_models.runtime.files import whole_file

FILE_NAME = "state.pt"


@dataclass
class TrainState:
    step: int  # optimizer steps done
    wall_s: float
    best: float  # highest selection score so far
    best_scores: dict[str, float]
    model: dict[str, Any]
    ema: dict[str, Any]
    optimizer: dict[str, Any]


def save_state(folder: Path, state: TrainState) -> None:
    with whole_file(folder / FILE_NAME) as partial:
        torch.save(asdict(state), partial)


def load_state(folder: Path) -> TrainState | None:
    """The state last saved in the folder, None where there is none; only tensors and plain values are read."""
    path = folder / FILE_NAME
    return TrainState(**torch.load(path, map_location="cpu", weights_only=True)) if path.exists() else None
