"""RobustClassifier: pixels in [0,1] -> logits, with the normaliser inside and all that its file says about it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
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
    "half": Normalizer((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # pixels in [-1,1]
    "cifar10-std0.2": Normalizer((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # kuangliu/pytorch-cifar's
    "std0.225": Normalizer((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)),  # convex_adversarial's, alpha-beta-CROWN's
    "cifar100": Normalizer((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "clip": Normalizer((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "svhn": Normalizer((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


STARTS = ("seeds", "pca", "noise", "images")  # where made images begin; images: of any set


@dataclass(frozen=True)
class Generation:
    """How a classifier that was trained to generate makes images best, and what it makes of real ones."""

    step_size: float  # L2 length of a step up the logit of the class, pixels in [0,1]
    steps: int
    median_energy: float  # of held-out real images, -logsumexp of their logits
    start: str = "seeds"  # one of STARTS: where climbs began in its training

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {self.step_size:g} up the class's logit from {self.start}; median energy of real "
            f"images {self.median_energy:.4g}"
        )


@dataclass(frozen=True)
class Description:
    """What is known of a network besides its tensors; a checkpoint of this project states all of it."""

    arch: str
    class_names: tuple[str, ...]
    image_size: int  # pixels; height and width are equal
    activation: str = "relu"
    options: dict[str, Any] = field(default_factory=dict)  # what a library's builder needs besides the classes
    normalizer: Normalizer = field(default_factory=Normalizer)
    threat_model: ThreatModel | None = None  # None: not trained to withstand anything
    recipe: dict[str, Any] = field(default_factory=dict)  # the resolved training config
    scores: dict[str, Any] = field(default_factory=dict)  # measured accuracies, with N
    generation: Generation | None = None  # None: not trained to generate

    @property
    def num_classes(self) -> int:
        """Logits for each image."""
        return len(self.class_names)

    @property
    def assumptions(self) -> dict[str, str]:
        """What the file did not state and the person did not give, and what was taken: {"normalize": "none", ...}.

        Named as the keyword of robust_models.load that states it: arch, normalize, activation, class_names, image_size,
        head.
        """
        return self.recipe.get("source", {}).get("assumed", {})

    def known(self, names: Iterable[str]) -> "Description":
        """The description without the assumptions of these names."""
        stated = {*names}
        left = {name: value for name, value in self.assumptions.items() if name not in stated}
        if left == self.assumptions:
            return self
        source = {**self.recipe["source"], "assumed": left}
        return replace(self, recipe={**self.recipe, "source": source})


# Networks whose forward takes channels_last; other people's code may call view() on a map, which needs contiguous.
_CHANNELS_LAST_LIBRARIES = {"robust_models", "torchvision", "timm", "transformers"}


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
        library = type(network).__module__.partition(".")[0]
        channels_last = library in _CHANNELS_LAST_LIBRARIES
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.precision: Precision = "fp32"
        self._head_name: str | None = None  # found when it is asked for
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
        """Of the logits, in order."""
        return self.description.class_names

    @property
    def image_size(self) -> int:
        """Pixels of a side of the images it was made for."""
        return self.description.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes; also of a network that has no parameters, as a program has none."""
        return self.mean.device

    def forward(self, x: Tensor) -> Tensor:
        """x [N,3,H,W] in [0,1] -> logits [N,classes], float32."""
        x = ((x - self.mean) / self.std).contiguous(memory_format=self.memory_format)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(x).float()

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees, [N,D] float32."""
        seen: list[Tensor] = []
        with self.noting_features(seen):
            self(x)
        return seen[0]

    @contextmanager
    def noting_features(self, seen: list[Tensor]) -> Iterator[None]:
        """Appends to `seen` the features [N,D] of each batch that passes inside the block: they cost no pass."""

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(self._of_images(inputs[0].flatten(1).float()))

        handle = self.head.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def _of_images(self, features: Tensor) -> Tensor:
        """Those of the N images of a batch, from all that the last linear layer saw."""
        return features

    @property
    def head(self) -> nn.Linear:
        """The linear layer that gives the logits. UserError where none does: then the network has no features."""
        if self._head_name is None:
            self._head_name = self._find_head()
        module = self.network.get_submodule(self._head_name)
        assert isinstance(module, nn.Linear)
        return module

    @torch.no_grad()
    def _find_head(self) -> str:
        """Its name: on two random images, the linear layer of vectors [N,D] whose output is what the network gives."""
        linear = {name: module for name, module in self.network.named_modules() if isinstance(module, nn.Linear)}
        if not linear:
            raise UserError(f"{self.description.arch}: no linear layer, so no features to take")
        if type(self.network).__module__.startswith("robust_models."):
            return [*linear][-1]  # ours end so
        outputs: list[tuple[str, Tensor]] = []

        def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if inputs[0].ndim == 2:
                outputs.append((name, output))

        handles = [module.register_forward_hook(partial(keep, name)) for name, module in linear.items()]
        modes = [(module, module.training) for module in self.network.modules()]
        size = self.image_size
        x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(self.mean)
        try:
            self.network.eval()
            logits = self(x)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes:
                module.training = mode
        largest = float(logits.abs().max())
        for name, output in reversed(outputs):
            if output.shape == logits.shape and torch.allclose(output.float(), logits, rtol=1e-4, atol=1e-5 * largest):
                return name
        raise UserError(
            f"{self.description.arch}: no linear layer gives the logits (they are a mean of several heads, scaled, or "
            "come out of something else), so it has no features to take"
        )


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values [N,...] (logits, gradients, ...) as they came. UserError where any is NaN or infinite, with counts."""
    finite = torch.isfinite(values.detach()).flatten(1).all(dim=1)
    if not finite.all():
        broken = int((~finite).sum())
        raise UserError(
            f"{what}: NaN or infinite for {broken} of {len(values)} images, so nothing can be computed from them; "
            "check the weights, the normaliser (--normalize) and the precision (--precision fp32)"
        )
    return values


def class_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """The classes of the first RobustClassifier in the model; None where there is none."""
    return next((part.class_names for part in model.modules() if isinstance(part, RobustClassifier)), None)
