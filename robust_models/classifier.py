"""RobustClassifier: pixels in [0,1] -> logits, with the normaliser inside and all that its file says about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_models.architectures import build
from robust_models.errors import UserError
from robust_models.threat import ThreatModel

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Normalizer:
    """Per-channel mean and std in [0,1] pixel units; (0,0,0) and (1,1,1) leave the pixels as they are."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def parse(cls, values: "str | Sequence[float] | Normalizer") -> "Normalizer":
        """A name in NORMALIZERS; "mean,std"; or the means then the stds of all channels, "r,g,b,r,g,b"."""
        if isinstance(values, Normalizer):
            return values
        if isinstance(values, str) and values in NORMALIZERS:
            return NORMALIZERS[values]
        try:
            numbers = [float(v) for v in (values.split(",") if isinstance(values, str) else values)]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            numbers = [numbers[0]] * 3 + [numbers[1]] * 3
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
            raise UserError(
                f"normalize: {values!r} is none of {', '.join(NORMALIZERS)} and not mean,std (two numbers, or six: the "
                "channels' means, then their stds above 0; pixels in [0,1])"
            )
        return cls(tuple(numbers[:3]), tuple(numbers[3:]))


NORMALIZERS = {
    "none": Normalizer(),
    "cifar10": Normalizer((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Description:
    """What a checkpoint tells about its network besides the tensors."""

    arch: str
    class_names: tuple[str, ...]
    image_size: int  # pixels; height and width are equal
    activation: str = "relu"
    options: dict[str, Any] = field(default_factory=dict)  # what a library's builder needs besides the classes
    normalizer: Normalizer = field(default_factory=Normalizer)
    threat_model: ThreatModel | None = None  # None: not trained to withstand anything
    recipe: dict[str, Any] = field(default_factory=dict)  # the resolved training config
    scores: dict[str, Any] = field(default_factory=dict)  # measured accuracies, with N

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class RobustClassifier(nn.Module):
    """x [N,3,H,W] in [0,1] -> logits [N,classes], always float32.

    `precision = "bf16"` runs the network under autocast; attack, training, refinement and evaluation then all do, as
    they only ever see this forward.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, description: Description) -> None:
        super().__init__()
        self.network = network
        self.description = description
        self.precision: Precision = "fp32"
        self.register_buffer("mean", torch.tensor(description.normalizer.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(description.normalizer.std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_description(cls, description: Description) -> "RobustClassifier":
        """The described network with fresh weights."""
        network = build(
            description.arch,
            num_classes=description.num_classes,
            activation=description.activation,
            options=description.options,
        )
        return cls(network, description)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.description.class_names

    @property
    def image_size(self) -> int:
        return self.description.image_size

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(x).float()

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees, [N,D] float32."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self(x)
        finally:
            handle.remove()
        return seen[0].flatten(1).float()

    @property
    def head(self) -> nn.Linear:
        """The last linear layer of the network."""
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(f"{self.description.arch}: no linear layer, so no features to take")
        return linear[-1]
