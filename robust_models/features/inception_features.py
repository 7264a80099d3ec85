"""Features of the FID network, under any of the field's preprocessing protocols."""

from pathlib import Path

import torch
from torch import Tensor

from robust_models.errors import UserError
from robust_models.features.inception_network import DEPTHS, build, fill, fold, missing_blocks
from robust_models.features.inception_weights import find_weights, read_weights
from robust_models.features.protocols import PROTOCOLS
from robust_models.runtime.device import exact_fp32

# guided-diffusion's evaluator takes the first 7 channels of "mixed_6/conv" for its sFID (Nash et al. 2021,
# arXiv:2103.03841): the first convolution of the block that pytorch-fid calls Mixed_6d, and of its output.
SPATIAL_BLOCK, SPATIAL_CHANNELS = "Mixed_6d", 7


class InceptionFeatures:
    """FeatureExtractor "inception" (2048-d, the FID's), "inception-768", "inception-192" or "inception-64"."""

    image_size: int | None = None

    def __init__(self, name: str, weights: Path | str | None, protocol: str, *, device: torch.device) -> None:
        last, self.dim = DEPTHS[name]
        self.name, self.protocol = name, protocol
        self.is_fid = name == "inception"
        network = build(last)
        path = find_weights(weights, first_part=not self.is_fid)
        state, self.source = read_weights(path)
        absent = missing_blocks(network, state)
        if absent:
            raise UserError(
                f"weights: {path} is only the first part of the network: {', '.join(absent)} missing, which "
                f"--features {name} needs; give the whole file, or use --features inception-768"
            )
        self._network = fold(fill(network, state)).to(device)
        self.spatial_dim = SPATIAL_CHANNELS * 17 * 17 if SPATIAL_BLOCK in dict(network.named_children()) else None
        self._head = state["fc.weight"].to(device) if self.is_fid and "fc.weight" in state else None
        self.num_classes = None if self._head is None else len(self._head)
        self._device = device

    def __call__(self, x_u8: Tensor) -> Tensor:
        return self.with_spatial(x_u8)[0]

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        """(features [n,dim], the sFID's [n,spatial_dim] or None where the network ends before them)."""
        with torch.no_grad(), exact_fp32():
            x = PROTOCOLS[self.protocol](x_u8.to(self._device)).contiguous(memory_format=torch.channels_last)
            spatial = None
            for name, block in self._network.named_children():
                x = block(x)
                if name == SPATIAL_BLOCK:
                    # Channels last, as TensorFlow lays them out: so that stored mu_s and sigma_s fit.
                    spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            return x, spatial

    def logits(self, features: Tensor) -> Tensor | None:
        """Without the bias, as the Inception Score has them since TensorFlow's graph; [n,1008]."""
        with torch.no_grad(), exact_fp32():
            return None if self._head is None else features.to(self._device) @ self._head.T
