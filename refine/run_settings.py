"""What decides a run's result, as plain values: two runs with equal settings make the same images."""

from pathlib import Path
from typing import Any

import torch

from refine.config import RefineConfig
from refine.grouped import GroupedImages
from refine.synthesis.config import SynthesisConfig
from robust_models.checkpoints import find
from robust_models.classifier import Precision
from robust_models.images.open import fingerprint
from robust_models.runtime.config import as_plain
from robust_models.runtime.files import sha256_of

# Without effect, or given below in other words. On a GPU batch_size moves the last float32 bits, but a run that was out
# of memory must be able to go on with a smaller one.
_LEFT_OUT = {
    "ckpt", "input", "out", "targets", "reference", "judge", "auto_images", "auto_accept", "batch_size", "device",
    "precision", "overwrite", "grid", "grid_images", "trajectory", "trajectory_images",
}  # fmt: skip


def deciding(config: RefineConfig, images: GroupedImages, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Every setting that decides the images, JSON-ready, with what the files it names hold."""
    plain = {name: value for name, value in as_plain(config).items() if name not in _LEFT_OUT}
    for i, name in enumerate(config.ckpts):
        plain["ckpt" if i == 0 else f"ckpt {i + 1}"] = f"{name} (sha256 {sha256_of(find(name))[:16]})"
    plain |= {
        "input": str(config.input.resolve()),
        "input files": fingerprint(config.input),
        "input images": ", ".join(
            f"{len(part)} of {part.size[1]}x{part.size[0]} {part.depth}" for part in images.groups.sets
        ),
        "targets": config.targets or ("pseudo" if images.labels is None else "given"),
        "device": device.type,
        "precision": precision,
    }
    for name, text in (("targets", config.targets), ("prior", config.prior)):
        if text is not None and Path(text).is_file():
            plain[f"{name} file"] = sha256_of(Path(text))[:16]
    if config.eps == "auto" and config.reference is not None:
        plain |= {"reference": str(config.reference.resolve()), "reference files": fingerprint(config.reference)}
        plain |= {"judge": config.judge, "auto_images": config.auto_images, "auto_accept": config.auto_accept}
    return plain


def deciding_of_task(task: str, config: SynthesisConfig, device: torch.device, precision: Precision) -> dict[str, Any]:
    """The same for a synthesis task: its flags, and what the files that they name hold."""
    plain = {name: value for name, value in as_plain(config).items() if name not in _LEFT_OUT - {"input", "targets"}}
    files = {
        f"{name} files": fingerprint(Path(value))
        for name, value in plain.items()
        if isinstance(value, str) and Path(value).exists()
    }
    ckpt = f"{config.ckpt} (sha256 {sha256_of(find(config.ckpt))[:16]})"
    return {"task": task, "ckpt": ckpt, **plain, **files, "device": device.type, "precision": precision}
