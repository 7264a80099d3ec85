"""The FID network: TensorFlow's Inception of 2015-12-05, from torch-fidelity's blocks and a local weights file.

Blocks are torch-fidelity's; resizing, scaling and loading are ours: its own extractor fixes them to one protocol.
"""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.exact import exact_fp32
from eval.features.inception_weights import find_weights, read_weights
from robust_models.errors import UserError

DEPTHS = {"inception": ("Mixed_7c", 2048), "inception-768": ("Mixed_6e", 768)}  # last block, features


class InceptionFeatures:
    """FeatureExtractor "inception" (2048-d, the FID's) or "inception-768", with pytorch-fid's preprocessing."""

    protocol = "pytorch-fid"
    image_size: int | None = None

    def __init__(self, name: str, weights: Path | None, *, device: torch.device) -> None:
        last, self.dim = DEPTHS[name]
        self.name = name
        self.is_fid = name == "inception"
        network = build(last)
        path = find_weights(weights)
        state, self.source = read_weights(path)
        absent = missing_blocks(network, state)
        if absent:
            raise UserError(
                f"weights: {path} is only the first part of the network: {', '.join(absent)} missing, which "
                f"--features {name} needs; give the whole file, or use --features inception-768"
            )
        self._network = fill(network, state).to(device)
        self._device = device

    def __call__(self, x_u8: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32():
            return self._network(preprocess(x_u8.to(self._device)))


def preprocess(x_u8: Tensor) -> Tensor:
    """pytorch-fid's: uint8 [n,3,H,W] -> float32 [n,3,299,299] in [-1,1], bilinear between pixel centres, no antialias.

    The score depends on every detail of it: TensorFlow's resize and (x - 128) / 128 are other protocols.
    """
    x = F.interpolate(x_u8.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
    return 2 * x - 1


def missing_blocks(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Blocks of the network some of whose weights are not in `state`, in order."""
    wanted = (key for key in network.state_dict() if not key.endswith("num_batches_tracked"))
    return list(dict.fromkeys(key.split(".")[0] for key in wanted if key not in state))


def fill(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The built network with its weights out of `state`, for inference."""
    blocks = dict(network.named_children())
    network.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in blocks}, assign=True)
    return network.eval().requires_grad_(False)


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
    pooling = {"AvgPool": nn.AdaptiveAvgPool2d(1), "Flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict([*list(blocks.items())[:until], *pooling.items()]))
