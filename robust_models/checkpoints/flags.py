"""What a person may say about a checkpoint on any command line, and loading with it."""

from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_models.checkpoints.load import load
from robust_models.classifier import RobustClassifier
from robust_models.runtime.config import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CheckpointFlags:
    """Fields of every command that reads a classifier; all default to what the file says."""

    arch: str | None = Field(None, description="a foreign checkpoint's network (null: from its tensors' shapes)")
    normalize: str | None = Field(
        None,
        description="its normaliser: cifar10, imagenet, none, or mean,std as two or six numbers (null: the file's)",
    )
    activation: str | None = Field(None, description="its activation: relu, silu or softplus (null: relu unless known)")
    ema: bool = Field(False, description="take the averaged weights of a checkpoint that has both")
    trust: bool = Field(False, description="load TorchScript, torch.export and ONNX files, which run with your rights")

    def load(self, checkpoint: str) -> RobustClassifier:
        """robust_models.load with these settings."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in CheckpointFlags.__dataclass_fields__}
        return load(checkpoint, **settings)
