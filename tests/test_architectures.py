"""Each architecture by its name: parameters as published, gradients to the pixels, features, sizes, activations."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_models import RobustClassifier, UserError
from robust_models.architectures import ACTIVATIONS, build
from robust_models.architectures.preact_resnet import SameConv3x3, preact_block
from robust_models.architectures.registry import EXAMPLES
from tests.tiny import tiny_classifier

# Counted in the original packages (MadryLab robustness, RobustBench) with 10 classes.
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "resnet152": 58_156_618,
    "resnet18_w320": 279_019_850,
    "resnet18_w48": 6_288_442,
    "resnext29_4x32d": 6_807_882,
    "preact_resnet18": 11_172_170,
    "preact_resnet18_nolastbn": 11_171_146,
    "preact_resnet18_nolastbn_xshortcut": 11_171_146,
    "wide_resnet_28_10": 36_479_194,
    "wide_resnet_34_10": 46_160_474,
    "wide_resnet_34_20": 184_531_674,
    "wide_resnet_70_16": 266_796_506,
    "wide_resnet_34_w320_640_512": 68_116_698,
    "dm_wide_resnet_28_10": 36_479_194,
    "dm_preact_resnet18": 12_548_426,
    "dm_preact_resnet34": 22_656_586,
    "vgg11": 9_231_114,
    "vgg13": 9_416_010,
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
    "densenet121": 6_956_298,
    "densenet161": 26_482_378,
    "densenet169": 12_493_322,
    "densenet201": 18_104_330,
    "densenet121_k12": 1_000_618,
    "inception_v3": 22_133_738,
}

# One of each family, as small as its names allow, with the channels of its last map and how often it halves the size.
SMALL = {
    "resnet10_w16": (128, 3),
    "resnext11_2x8d": (1024, 2),
    "preact_resnet10_w16": (128, 3),
    "preact_resnet50_w8_nolastbn_xshortcut": (256, 3),
    "wide_resnet_10_1": (64, 2),
    "dm_wide_resnet_10_w16_24_32": (32, 2),
    "dm_preact_resnet18": (512, 3),
    "vgg11": (512, 5),
    "densenet121_k4": (128, 3),
    "inception_v3": (2048, None),
}


@pytest.mark.parametrize(("arch", "parameters"), PARAMETERS.items())
def test_parameters_are_as_published(arch, parameters):
    with torch.device("meta"):
        network = build(arch, num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("arch", EXAMPLES)
def test_every_name_in_the_hint_builds(arch):
    with torch.device("meta"):
        head = [module for module in build(arch, num_classes=7).modules() if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in head] == [7]


@pytest.mark.parametrize(("arch", "last_map"), SMALL.items())
def test_logits_features_gradients_and_sizes(arch, last_map):
    model = tiny_classifier(arch)
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert logits.shape == (2, 3)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    channels, halvings = last_map
    features = model.features(x)
    assert features.shape == (2, channels)
    torch.testing.assert_close(model.head(features), logits, rtol=1e-4, atol=1e-5)
    size = 6 if halvings is None else 32 // 2**halvings
    assert model.network.blocks(stem_of(model)(x)).shape == (2, channels, size, size)


def stem_of(model: RobustClassifier) -> nn.Module:
    return getattr(model.network, "stem", nn.Identity())


@pytest.mark.parametrize("arch", SMALL)
def test_the_activation_is_everywhere(arch):
    def counts(activation: str) -> list[int]:
        with torch.device("meta"):
            modules = [*build(arch, num_classes=3, activation=activation).modules()]
        return [sum(isinstance(module, kind) for module in modules) for kind in (nn.ReLU, nn.SiLU)]

    used, none = counts("relu")
    assert (used > 3, none) == (True, 0)
    assert counts("silu") == [0, used]


def test_silu_and_softplus_give_other_logits_than_relu():
    x = torch.rand(2, 3, 16, 16)
    relu = tiny_classifier()
    for activation in ("silu", "softplus"):
        other = RobustClassifier.from_description(replace(relu.description, activation=activation)).eval()
        other.load_state_dict(relu.state_dict())
        assert (other(x) - relu(x)).abs().max() > 1e-3


def test_same_padding_looks_at_the_far_edge_at_stride_2_only():
    x = torch.rand(1, 2, 6, 6)
    conv = SameConv3x3(2, 3, 2)
    torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, stride=2))
    assert conv(x).shape == (1, 3, 3, 3)
    conv = SameConv3x3(2, 3, 1)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, padding=1))


def test_a_raw_shortcut_projects_x():
    relu = ACTIVATIONS["relu"]
    raw, usual = preact_block(2, 3, 2, relu, raw_shortcut=True).eval(), preact_block(2, 3, 2, relu).eval()
    usual.load_state_dict(raw.state_dict())
    x = torch.randn(1, 2, 4, 4)
    h = usual.preact(x.clone())
    torch.testing.assert_close(raw(x), raw.branch(h) + raw.shortcut(x))
    torch.testing.assert_close(usual(x), raw.branch(h) + raw.shortcut(h))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18wide", r"arch: 'resnet18wide' is not known; did you mean resnet18\?"),
        ("densenet_121", r"did you mean densenet121\?"),
        ("preact_resnet18_w0", "is not known"),
        ("wide_resnet_9999999999999999999_1", "is not known"),
        ("wide_resnet_28_٣", "is not known"),
        ("resnext30_4x32d", r"resnext depth: 30 is not 9n \+ 2"),
        ("dm_wide_resnet_27_10", "depth: 27 is not 6n"),
        ("no.such.module:net", r"arch: 'no.such.module:net' cannot be built \(ModuleNotFoundError"),
    ],
)
def test_a_name_that_fits_nothing_is_told(arch, message):
    with pytest.raises(UserError, match=message):
        build(arch, num_classes=3)


def test_what_an_architecture_would_ignore_is_refused():
    with pytest.raises(UserError, match="activation: 'silu' cannot be chosen for torchvision:resnet18, which brings"):
        build("torchvision:resnet18", num_classes=3, activation="silu")
    with pytest.raises(UserError, match="options: zero_init mean nothing to resnet18"):
        build("resnet18", num_classes=3, options={"zero_init": True})
    with pytest.raises(UserError, match="activation: 'tanh' is none of relu, silu, softplus"):
        build("vgg11", num_classes=3, activation="tanh")
    with torch.device("meta"):
        network = build("torchvision:resnet18", num_classes=3, options={"zero_init_residual": True})
    assert network.fc.out_features == 3
