"""Foreign CIFAR files by their names and shapes alone: what is recognised, and that hostile ones cost nothing."""

import re
from contextlib import suppress
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robust_models import Normalizer, UserError
from robust_models.architectures import build
from robust_models.checkpoints.infer import READERS, Match
from robust_models.checkpoints.infer.match import MAX_BLOCKS, depths
from tests.oracles.lively import lively, two_images


def infer_cifar(state: dict[str, Tensor]) -> Match | None:
    return next(filter(None, (reader(state) for reader in READERS)), None)


def vgg11() -> nn.Module:
    """kuangliu's names."""
    layers: list[nn.Module] = []
    planes = 3
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(planes, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        planes = width
    names = {"features": nn.Sequential(*layers), "flatten": nn.Flatten(), "classifier": nn.Linear(512, 10)}
    network = nn.Sequential()
    for name, module in names.items():
        network.add_module(name, module)
    return network


class DenseLayer(nn.Module):
    def __init__(self, planes: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(planes), nn.Conv2d(planes, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat((new, x), 1)


class DenseNet(nn.Module):
    """kuangliu's names; 121 layers."""

    def __init__(self, growth: int) -> None:
        super().__init__()
        planes = 2 * growth
        self.conv1 = nn.Conv2d(3, planes, 3, padding=1, bias=False)
        for stage, layers in enumerate((6, 12, 24, 16), 1):
            self.add_module(
                f"dense{stage}", nn.Sequential(*(DenseLayer(planes + i * growth, growth) for i in range(layers)))
            )
            planes += layers * growth
            if stage < 4:
                halving = nn.ModuleDict(
                    {"bn": nn.BatchNorm2d(planes), "conv": nn.Conv2d(planes, planes // 2, 1, bias=False)}
                )
                self.add_module(f"trans{stage}", halving)
                planes //= 2
        self.bn, self.linear = nn.BatchNorm2d(planes), nn.Linear(planes, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        for stage in (1, 2, 3, 4):
            h = getattr(self, f"dense{stage}")(h)
            if stage < 4:
                halving = getattr(self, f"trans{stage}")
                h = F.avg_pool2d(halving["conv"](F.relu(halving["bn"](h))), 2)
        return self.linear(F.relu(self.bn(h)).mean((2, 3)))


class DeepMindBlock(nn.Module):
    def __init__(self, planes: int, width: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(planes), nn.BatchNorm2d(width)
        self.conv_0 = nn.Conv2d(planes, width, 3, stride, bias=False)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(planes, width, 1, stride, bias=False) if planes != width else None
        self.edges = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.batchnorm_0(x))
        new = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(F.pad(h, self.edges)))))
        return new + (x if self.shortcut is None else self.shortcut(h))


class DeepMindWide(nn.Module):
    """DeepMind's names; depth 10, widening 2."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.init_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks = [DeepMindBlock(16, 32, 1), DeepMindBlock(32, 64, 2), DeepMindBlock(64, 128, 2)]
        self.layer = nn.Sequential(*(nn.Sequential() for _ in blocks))
        for group, block in zip(self.layer, blocks, strict=True):
            group.add_module("block", nn.Sequential(block))
        self.batchnorm, self.logits = nn.BatchNorm2d(128), nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.silu(self.batchnorm(self.layer(self.init_conv(x)))).mean((2, 3)))


@torch.no_grad()
def assert_read_as(network: nn.Module, arch: str, activation: str = "relu") -> None:
    match = infer_cifar(lively(network).state_dict())
    assert match
    assert match.arch == arch
    ours = build(arch, num_classes=match.state["head.bias"].numel(), activation=match.activation or "relu").eval()
    assert (match.activation or "relu") == activation
    ours.load_state_dict(match.state)
    x, expected = two_images(32), network(two_images(32))
    assert (ours(x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_vgg():
    assert_read_as(vgg11(), "vgg11")


def test_densenet():
    assert_read_as(DenseNet(8), "densenet121_k8")


def test_deepminds_wide_resnet_with_the_normaliser_that_no_file_holds():
    assert_read_as(DeepMindWide(10), "dm_wide_resnet_10_2", "silu")
    normalizers = [infer_cifar(DeepMindWide(classes).state_dict()).normalizer for classes in (10, 100, 7)]
    assert normalizers[0] == Normalizer((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    assert normalizers[1] == Normalizer((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert normalizers[2] is None


@pytest.mark.parametrize(
    ("names", "first", "found"),
    [
        (["s1.0.w", "s1.1.w", "s2.0.w"], 1, (2, 1)),
        (["s0.0.w", "s1.0.w"], 0, (1, 1)),
        (["s0.0.w", "s1.0.w"], 1, ()),
        (["s1.0.w", "s1.2.w"], 1, ()),
        (["s1.1.w"], 1, ()),
        ([], 0, ()),
        ([f"s1.{i}.w" for i in range(MAX_BLOCKS)], 1, (MAX_BLOCKS,)),
        ([f"s1.{i}.w" for i in range(MAX_BLOCKS + 1)], 1, ()),
    ],
)
def test_depths_count_whole_stages_only(names, first, found):
    assert depths(dict.fromkeys(names), r"s(\d)\.(\d{1,4})\.w", first=first) == found


# What the readers look at, in a form that each would take; hostile files change shapes and leave names out.
LOOKED_AT = {
    "conv1.weight": (64, 3, 3, 3),
    "bn1.weight": (64,),
    "bn.weight": (64,),
    "linear.weight": (10, 64),
    "fc.weight": (10, 64),
    "classifier.weight": (10, 64),
    **{f"layer{s}.{i}.{name}": (64, 64, 3, 3) for s in (1, 2, 3, 4) for i in (0, 1) for name in ("conv1.weight",)},
    "layer1.0.bn1.weight": (64,),
    "layer1.0.conv3.weight": (64, 64, 1, 1),
    **{f"block{s}.layer.0.conv1.weight": (16, 16, 3, 3) for s in (1, 2, 3)},
    **{f"blocks.{s}.layer.0.conv1.weight": (16, 16, 3, 3) for s in (0, 1, 2)},
    "stem_conv.weight": (16, 3, 3, 3),
    **{f"stage_{s}.0.conv_conv.weight": (64, 4, 3, 3) for s in (1, 2, 3)},
    "conv_1_3x3.weight": (64, 3, 3, 3),
    **{f"layer.{s}.block.0.conv_0.weight": (16, 16, 3, 3) for s in (0, 1, 2)},
    "init_conv.weight": (16, 3, 3, 3),
    "logits.weight": (10, 64),
    **{f"layer_{s}.{i}.conv_2d_1.weight": (64, 64, 3, 3) for s in (0, 1, 2, 3) for i in (0, 1)},
    "conv_2d.weight": (64, 3, 3, 3),
    **{f"features.{i}.weight": (64, 3, 3, 3) for i in range(0, 24, 3)},
    "features.1.running_mean": (64,),
    **{f"dense{s}.{i}.conv1.weight": (48, 24, 1, 1) for s, n in enumerate((6, 12, 24, 16), 1) for i in range(n)},
    "dense1.0.conv2.weight": (12, 48, 3, 3),
    "trans9.bn.weight": (1,),
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Mixed_5b.branch5x5.0.conv.weight": (48, 192, 1, 1),
    "Mixed_5b.nothing.conv.weight": (1,),
}
SHAPES = st.sampled_from(
    [(), (0,), (3,), (16, 3, 3, 3), (2**40, 3, 3, 3), (10000, 3, 3, 3), (0, 0, 3, 3), (7, 5, 3, 3)]
)


@given(
    st.sets(st.sampled_from(sorted(LOOKED_AT)), max_size=12),
    st.dictionaries(st.sampled_from(sorted(LOOKED_AT)), SHAPES),
)
def test_hostile_shapes_end_in_an_architecture_or_in_one_line(left_out, reshaped):
    shapes = {name: reshaped.get(name, shape) for name, shape in LOOKED_AT.items() if name not in left_out}
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for match in filter(None, (reader(state) for reader in READERS)):
        builds_or_refuses(match.arch)


@cache
def builds_or_refuses(arch: str) -> None:
    with suppress(UserError), torch.device("meta"):  # WideResNets of no known depth
        build(arch, num_classes=10)


@pytest.mark.parametrize(
    ("leader", "arch"),
    [
        (r"conv1|bn1|linear|layer\d\.", "resnet18"),
        (r"conv1|bn\.|linear|layer\d\.", "preact_resnet18"),
        (r"stem_conv|bn1|fc|blocks", "wide_resnet_10_w16_16_16"),
        (r"conv_1_3x3|classifier|stage", "resnext11_16x4d"),
        (r"init_conv|logits|layer\.", "dm_wide_resnet_10_w16_16_16"),
        (r"conv_2d|logits|layer_", "dm_preact_resnet18"),
        (r"features|classifier", "vgg11"),
        (r"Conv2d|Mixed|linear", "inception_v3"),
    ],
)
def test_each_reader_takes_its_own(leader, arch):
    """So that the hostile shapes above reach it."""
    names = [name for name in LOOKED_AT if re.match(leader, name) and name != "layer1.0.conv3.weight"]
    match = infer_cifar({name: torch.empty(LOOKED_AT[name], device="meta") for name in names})
    assert match
    assert match.arch == arch
