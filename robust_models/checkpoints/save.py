"""Our checkpoint: a safetensors file whose metadata holds the Description and a format version."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save as as_bytes

from robust_models.checkpoints.programs.program import Program
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.files import whole_file

FORMAT_VERSION = 1


def save(model: RobustClassifier, path: Path | str) -> None:
    """Writes network tensors and description to `path` (safetensors), whole or not at all. UserError for a program."""
    if isinstance(model.network, Program):
        raise UserError(f"save: {model.description.arch} is code, not only tensors; keep the file it came from")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    metadata = {"bigroc": json.dumps({"version": FORMAT_VERSION, **asdict(model.description)}), "format": "pt"}
    with whole_file(Path(path)) as partial:
        partial.write_bytes(as_bytes(state, metadata))  # safetensors' own writing does not say that a disk is full
