"""The FID network: TensorFlow's Inception of 2015-12-05, from torch-fidelity's blocks, made fast without other numbers.

Resizing, scaling and loading are ours: torch-fidelity's own extractor fixes them to one protocol.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.errors import UserError

DEPTHS = {  # features: last block, how many
    "inception": ("Mixed_7c", 2048),
    "inception-768": ("Mixed_6e", 768),
    "inception-192": ("MaxPool_2", 192),
    "inception-64": ("MaxPool_1", 64),
}
POOL, FLATTEN = "AvgPool", "Flatten"


def build(last: str) -> nn.Sequential:
    """preprocessed [n,3,299,299] -> mean over positions of the output of block `last`, [n,dim] float32.

    Blocks have pytorch-fid's names. On the meta device: no weights yet, no draw from the global generator.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as tf
    except ImportError as error:
        raise UserError(
            f"features: the Inception network needs torch-fidelity ({error}); pip install 'torch-fidelity>=0.4'"
        ) from error

    with torch.device("meta"):
        blocks = {
            "Conv2d_1a_3x3": tf.BasicConv2d(3, 32, kernel_size=3, stride=2),
            "Conv2d_2a_3x3": tf.BasicConv2d(32, 32, kernel_size=3),
            "Conv2d_2b_3x3": tf.BasicConv2d(32, 64, kernel_size=3, padding=1),
            "MaxPool_1": nn.MaxPool2d(kernel_size=3, stride=2),
            "Conv2d_3b_1x1": tf.BasicConv2d(64, 80, kernel_size=1),
            "Conv2d_4a_3x3": tf.BasicConv2d(80, 192, kernel_size=3),
            "MaxPool_2": nn.MaxPool2d(kernel_size=3, stride=2),
            "Mixed_5b": tf.InceptionA(192, pool_features=32),
            "Mixed_5c": tf.InceptionA(256, pool_features=64),
            "Mixed_5d": tf.InceptionA(288, pool_features=64),
            "Mixed_6a": tf.InceptionB(288),
            "Mixed_6b": tf.InceptionC(768, channels_7x7=128),
            "Mixed_6c": tf.InceptionC(768, channels_7x7=160),
            "Mixed_6d": tf.InceptionC(768, channels_7x7=160),
            "Mixed_6e": tf.InceptionC(768, channels_7x7=192),
            "Mixed_7a": tf.InceptionD(768),
            "Mixed_7b": tf.InceptionE_1(1280),
            "Mixed_7c": tf.InceptionE_2(2048),
        }
    until = list(blocks).index(last) + 1
    pooling = {POOL: nn.AdaptiveAvgPool2d(1), FLATTEN: nn.Flatten()}
    return nn.Sequential(OrderedDict([*list(blocks.items())[:until], *pooling.items()]))


def missing_blocks(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Blocks of the network some of whose weights are not in `state`, in order."""
    wanted = (key for key in network.state_dict() if not key.endswith("num_batches_tracked"))
    return list(dict.fromkeys(key.split(".")[0] for key in wanted if key not in state))


def fill(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The built network with its weights out of `state`, for inference."""
    blocks = dict(network.named_children())
    network.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in blocks}, assign=True)
    return network.eval().requires_grad_(False)


def fold(network: nn.Module) -> nn.Module:
    """The filled network with every batch norm inside the convolution before it, in place.

    Weights are folded in float64 and stored channels last: 1.6 to 1.9 times as fast on a CPU, the same features but for
    float32 rounding (5e-7 of the largest).
    """
    for name, child in network.named_children():
        conv, norm = getattr(child, "conv", None), getattr(child, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(network, name, FoldedConv(conv, norm))
        else:
            fold(child)
    return network


class FoldedConv(nn.Module):
    """relu(norm(conv(x))) as one convolution; on a CPU with oneDNN the relu is part of it."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = (conv.weight.double() * scale.view(-1, 1, 1, 1)).float()
        self.weight = nn.Buffer(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Buffer((norm.bias.double() - norm.running_mean.double() * scale).float())
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and _ONEDNN is not None:
            return _ONEDNN(x, self.weight, self.bias, self.padding, self.stride, (1, 1), 1, "relu", [], "")
        return F.relu_(F.conv2d(x, self.weight, self.bias, self.stride, self.padding))


# What torch.compile calls for the same layers; not every build of torch has it.
_ONEDNN = getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if torch.backends.mkldnn.is_available() else None
