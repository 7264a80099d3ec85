"""Which file a number came from: its name and its hash."""

from dataclasses import dataclass

from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.checkpoints.load import find
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.files import sha256_of


@dataclass(frozen=True)
class Source:
    """A file as the user called it, and the sha256 of its bytes."""

    name: str
    sha256: str


def load_classifier(checkpoint: str, flags: CheckpointFlags | None = None) -> tuple[RobustClassifier, Source]:
    """The classifier called or stored at `checkpoint`, and its provenance. UserError as robust_models.load.

    Also UserError where a training run replaced the file meanwhile: hash and network would not belong together.
    """
    path = find(checkpoint)
    before = sha256_of(path)
    model = (flags or CheckpointFlags()).load(checkpoint)
    if sha256_of(path) != before:
        raise UserError(f"ckpt: {path} was replaced while it was read; run the command again, or copy the file first")
    return model, Source(checkpoint, before)
