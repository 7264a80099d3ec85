"""How far a chain of attacks has come, and the file from which it goes on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_models import UserError
from robust_models.runtime.files import whole_file

FORMAT = "bigroc robust accuracy 1"


@dataclass
class StageProgress:
    """One stage: `done` of the `total` images it began with are through."""

    survived: Tensor  # bool [N]; of those through, the ones still rightly classified
    total: int
    done: int = 0
    outside: int = 0  # fooled only by an image outside the ball
    wall_s: float = 0.0


@dataclass
class Progress:
    """The stages begun so far, in memory only."""

    stages: list[StageProgress] = field(default_factory=list)

    def save(self) -> None:
        """Called after each batch."""

    def standing(self, num_stages: int) -> str:
        """How far a chain of num_stages has come, in words."""
        whole, partly = len(self.stages), 0
        if self.stages and self.stages[-1].done < self.stages[-1].total:
            whole, partly = whole - 1, self.stages[-1].done
        if whole == num_stages:
            return "all is done"
        return f"{whole} of {num_stages} passes over the images are done, and {partly} images of the next"


@dataclass
class StoredProgress(Progress):
    """Kept in a JSON file after each batch, beside the fingerprint of the run that it belongs to."""

    path: Path = field(kw_only=True)
    fingerprint: Mapping[str, Any] = field(kw_only=True)

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any]) -> "StoredProgress":
        """The progress in the file, or none where there is no file yet.

        fingerprint is everything JSON-ready that the result depends on, `n` images among it. UserError for a file
        that is no such state, or belongs to a run with another fingerprint.
        """
        fingerprint = json.loads(json.dumps(fingerprint))
        if not path.exists():
            return cls(path=path, fingerprint=fingerprint)
        content = _read(path)
        for name, value in fingerprint.items():
            if (stored := content["fingerprint"].get(name)) != value:
                raise UserError(
                    f"state: {path} belongs to another run: {name} was {_short(stored)} there and is {_short(value)} "
                    "here; name another file, or remove it to begin again"
                )
        stages: list[StageProgress] = []
        for stored in content["stages"]:
            survived = _unpacked(stored["survived"], stored.get("n", fingerprint["n"]))
            before = int(stages[-1].survived.sum()) if stages else len(survived)  # where earlier releases kept no total
            counts = {name: stored[name] for name in ("done", "outside", "wall_s")}
            stages.append(StageProgress(survived, stored.get("total", before), **counts))
        return cls(stages, path=path, fingerprint=fingerprint)

    def save(self) -> None:
        """Writes the file anew, whole. UserError where there is no room."""
        stages = [
            {**vars(stage), "survived": _packed(stage.survived), "n": len(stage.survived)} for stage in self.stages
        ]
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps({"format": FORMAT, "fingerprint": self.fingerprint, "stages": stages}))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"state: {path} cannot be read as a state ({error}); name another file") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"state: {path} is not a state that --state wrote ({FORMAT}); name another file")
    return content


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."


def _packed(mask: Tensor) -> str:
    return np.packbits(mask.numpy()).tobytes().hex()


def _unpacked(text: str, n: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(bool))
