"""Which file a number came from: its name, its hash, and what was assumed of it."""

from dataclasses import dataclass, field

from robust_models.checkpoints.flags import CheckpointFlags
from robust_models.checkpoints.load import find
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.files import sha256_of


@dataclass(frozen=True)
class Source:
    """A file as the user called it, the sha256 of its bytes, and what it does not state (Description.assumptions)."""

    name: str
    sha256: str
    assumptions: dict[str, str] = field(default_factory=dict, hash=False)


def load_classifier(checkpoint: str, flags: CheckpointFlags | None = None) -> tuple[RobustClassifier, Source]:
    """The classifier called or stored at `checkpoint`, and its provenance. UserError as robust_models.load.

    Also UserError where a training run replaced the file meanwhile: hash and network would not belong together.
    """
    path = find(checkpoint)
    before = sha256_of(path)
    model = (flags or CheckpointFlags()).load(checkpoint)
    if sha256_of(path) != before:
        raise UserError(f"ckpt: {path} was replaced while it was read; run the command again, or copy the file first")
    return model, Source(checkpoint, before, model.description.assumptions)
