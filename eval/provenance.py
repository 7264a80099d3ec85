"""Which file a number came from: its name and its hash."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from robust_models import RobustClassifier, UserError, load
from robust_models.checkpoints import find


@dataclass(frozen=True)
class Source:
    """A file as the user called it, and the sha256 of its bytes."""

    name: str
    sha256: str


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_classifier(
    checkpoint: str, *, arch: str | None = None, normalize: str | None = None
) -> tuple[RobustClassifier, Source]:
    """The classifier called or stored at `checkpoint`, and its provenance. UserError as robust_models.load.

    Also UserError where a training run replaced the file meanwhile: hash and network would not belong together.
    """
    path = find(checkpoint)
    before = sha256_of(path)
    model = load(checkpoint, arch=arch, normalize=normalize)
    if sha256_of(path) != before:
        raise UserError(f"ckpt: {path} was replaced while it was read; run the command again, or copy the file first")
    return model, Source(checkpoint, before)
