"""From a name or a file to a RobustClassifier. Loading never runs code from the file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from robust_models.checkpoints.save import FORMAT_VERSION
from robust_models.classifier import Description, Normalizer, RobustClassifier
from robust_models.errors import UserError
from robust_models.threat import ThreatModel

PRETRAINED = Path(__file__).parent.parent / "pretrained"


def embedded_names() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(file.stem for file in PRETRAINED.glob("*.safetensors"))


def find(checkpoint: str | Path) -> Path:
    """The file of the embedded classifier `checkpoint`, or that path itself. UserError where there is no file."""
    path = PRETRAINED / f"{checkpoint}.safetensors" if str(checkpoint) in embedded_names() else Path(checkpoint)
    if not path.is_file():
        raise UserError(f"ckpt: no file {path}; give a checkpoint file or one of: {', '.join(embedded_names())}")
    return path


def load(checkpoint: str | Path) -> RobustClassifier:
    """The classifier called `checkpoint` (see embedded_names) or stored in that file, in eval mode on the CPU.

    Raises UserError when the file is missing, is not a checkpoint of this project, or does not fit its architecture.
    """
    path = find(checkpoint)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"ckpt: {path} is not a readable safetensors file ({error})") from error
    if "bigroc" not in metadata:
        raise UserError(f"ckpt: {path} is safetensors without this project's description (metadata key 'bigroc')")
    model = RobustClassifier.from_description(_description(json.loads(metadata["bigroc"]), path))
    _fit(model, state, path)
    return model.eval()


def _description(entries: dict[str, Any], path: Path) -> Description:
    version = entries.pop("version", 0)
    if version > FORMAT_VERSION:
        raise UserError(f"ckpt: {path} has format version {version}, newer than {FORMAT_VERSION}; update bigroc")
    normalizer, threat = entries.pop("normalizer"), entries.pop("threat_model")
    description = Description(**{**entries, "class_names": tuple(entries["class_names"])})
    return replace(
        description,
        normalizer=Normalizer(tuple(normalizer["mean"]), tuple(normalizer["std"])),
        threat_model=None if threat is None else ThreatModel(**threat),
    )


def _fit(model: RobustClassifier, state: dict[str, Tensor], path: Path) -> None:
    expected = model.network.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise UserError(
            f"ckpt: {path} does not fit {model.description.arch}: "
            f"{len(missing)} tensors missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"ckpt: {path} does not fit {model.description.arch}: {name} is {list(state[name].shape)}, "
                f"expected {list(tensor.shape)}"
            )
    model.network.load_state_dict(state)
