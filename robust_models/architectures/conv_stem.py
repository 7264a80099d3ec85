"""ConvStem (Singh, Croce, Hein 2023, arXiv:2303.01870): convolutions in place of the patches of a ViT or ConvNeXt."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from robust_models.errors import UserError

PLACES = ("patch_embed.proj", "stem")  # of timm's ViTs and ConvNeXts
_CONVNEXT_REDUCTION = 4  # pixels of the image for one of the map


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps [N,C,H,W]."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each position of the map has mean 0 and variance 1 over its channels, then scale and shift."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvStem(nn.Sequential):
    """Images [N,3,H,W] -> maps [N,C,H/reduction,W/reduction].

    convolutions: (channels, kernel) of each; those with a kernel of 3 are followed by a norm and GELU, and have stride
    2 until the reduction is reached, then 1. Norm "layer" is over the channels, "batch" over the batch.
    """

    def __init__(self, convolutions: Sequence[Sequence[int]], *, reduction: int, norm: str, bias: bool) -> None:
        if norm not in ("layer", "batch"):
            raise UserError(f"options: conv_stem has the norm {str(norm)[:40]!a}, expected layer or batch")
        layers: list[nn.Module] = []
        channels = 3
        for width, kernel in convolutions:
            stride = 2 if kernel > 1 and reduction > 1 else 1
            reduction //= stride
            layers.append(nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=bias))
            if kernel > 1:
                layers += [nn.BatchNorm2d(width) if norm == "batch" else ChannelNorm(width, eps=1e-6), nn.GELU()]
            channels = width
        super().__init__(*layers)


def replace_stem(network: nn.Module, options: dict[str, Any]) -> nn.Module:
    """The ViT or ConvNeXt of timm with a ConvStem of those options (convolutions, norm, bias) in place of its own.

    UserError where the network has neither patches nor a stem.
    """
    patches = getattr(network, "patch_embed", None)
    place, owner = ("proj", patches) if patches is not None else ("stem", network)
    if not isinstance(getattr(owner, place, None), nn.Module):
        raise UserError("options: conv_stem is for the ViTs and ConvNeXts of timm")
    reduction = patches.patch_size[0] if patches is not None else _CONVNEXT_REDUCTION
    setattr(owner, place, ConvStem(**options, reduction=reduction))
    return network
