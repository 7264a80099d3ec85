"""From an architecture's name to a network: our families for small images, by patterns of names, and libraries'."""

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from robust_models.architectures import libraries
from robust_models.architectures.clip import QuickGELU, clip_vit, with_classes
from robust_models.architectures.clip_resnet import clip_resnet
from robust_models.architectures.densenet import DenseNet
from robust_models.architectures.inception import InceptionV3
from robust_models.architectures.preact_resnet import (
    PreActResNet,
    SameConv3x3,
    preact_block,
    preact_bottleneck,
    wide_resnet,
)
from robust_models.architectures.resnet import Activation, ResNet, ZeroPadding, basic_block, bottleneck, projection
from robust_models.architectures.vgg import VGG
from robust_models.errors import UserError

ACTIVATIONS: dict[str, Activation] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "softplus": nn.Softplus,
    "leaky_relu": partial(nn.LeakyReLU, 0.01, inplace=True),
    "leaky_relu_0.1": partial(nn.LeakyReLU, 0.1, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
}

_BASIC = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
_BOTTLENECK = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
_SAME_BLOCK = partial(preact_block, conv=SameConv3x3)


def _resnet(depth: str, width: str | None, **common: Any) -> nn.Module:
    block, depths = (basic_block, _BASIC[depth]) if depth in _BASIC else (bottleneck, _BOTTLENECK[depth])
    return ResNet(block, depths, width=int(width or 64), **common)


def _cifar_resnet(depth: str, option: str | None, width: str | None, **common: Any) -> nn.Module:
    blocks, rest = divmod(int(depth) - 2, 6)
    if blocks < 1 or rest:
        raise UserError(f"cifar_resnet depth: {depth} is not 6n + 2 with n >= 1 (8, 14, 20, 32, 44, 56, 110, ...)")
    block = partial(basic_block, shortcut=projection if option else ZeroPadding)
    return ResNet(block, (blocks,) * 3, width=int(width or 16), **common)


def _resnext(depth: str, groups: str, group_width: str, **common: Any) -> nn.Module:
    blocks, rest = divmod(int(depth) - 2, 9)
    if blocks < 1 or rest:
        raise UserError(f"resnext depth: {depth} is not 9n + 2 with n >= 1 (11, 20, 29, 38, ...)")
    block = partial(bottleneck, groups=int(groups), group_width=int(group_width))
    return ResNet(block, (blocks,) * 3, **common)


def _preact_resnet(
    depth: str, width: str | None, no_last_bn: str | None, raw_shortcut: str | None, **common: Any
) -> nn.Module:
    block, depths = (preact_block, _BASIC[depth]) if depth in _BASIC else (preact_bottleneck, _BOTTLENECK[depth])
    block = partial(block, raw_shortcut=bool(raw_shortcut))
    widths = [int(width or 64) * factor for factor in (1, 2, 4, 8)]
    return PreActResNet(widths[0], widths, depths, block=block, last_bn=not no_last_bn, **common)


def _wide_resnet(dm: str | None, depth: str, widen: str | None, *widths: str, **common: Any) -> nn.Module:
    planes = [base * int(widen) for base in (16, 32, 64)] if widen else [int(width) for width in widths]
    return wide_resnet(int(depth), planes, block=_SAME_BLOCK if dm else preact_block, **common)


def _dm_preact_resnet(depth: str, **common: Any) -> nn.Module:
    block = partial(_SAME_BLOCK, project=SameConv3x3, raw_shortcut=True)
    return PreActResNet(64, (64, 128, 256, 512), _BASIC[depth], block=block, **common)


def _densenet(depth: str, growth: str | None, **common: Any) -> nn.Module:
    return DenseNet(int(depth), int(growth or (48 if depth == "161" else 32)), **common)


def _zero_shot(embedding: str, inner: str, *, num_classes: int, act: Activation) -> nn.Module:
    build_inner = _inner(inner, "cannot have a zero-shot head", but=(_zero_shot, clip_vit, clip_resnet))
    return with_classes(build_inner(num_classes=int(embedding), act=act), int(embedding), num_classes, linear=False)


def _noised(inner: str, *, num_classes: int, act: Activation) -> nn.Module:
    from robust_models.architectures.noised import Noised

    return Noised(_inner(inner, "cannot be told of noise", but=(_zero_shot, _noised))(num_classes=num_classes, act=act))


def _inner(name: str, otherwise: str, *, but: tuple[Callable[..., nn.Module], ...]) -> Callable[..., nn.Module]:
    """The builder of a network that goes into another one. UserError where there is none, or it is one of `but`."""
    for pattern, family in FAMILIES.items():
        if (groups := re.fullmatch(pattern, name, re.ASCII)) and family not in but:
            return partial(family, *groups.groups())
    raise UserError(f"arch: {name!r} {otherwise}; known: {', '.join(EXAMPLES)}")


_N = r"([1-9]\d{0,3})"
# Pattern of the names -> builder of its groups (None where one is left out), num_classes and act.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    rf"resnet(10|18|34|50|101|152)(?:_w{_N})?": _resnet,
    rf"cifar_resnet([1-9]\d{{0,3}})(_b)?(?:_w{_N})?": _cifar_resnet,
    rf"resnext([1-9]\d{{0,2}})_{_N}x{_N}d": _resnext,
    rf"preact_resnet(10|18|34|50|101|152)(?:_w{_N})?(_nolastbn)?(_xshortcut)?": _preact_resnet,
    rf"(dm_)?wide_resnet_([1-9]\d{{0,2}})_(?:{_N}|w{_N}_{_N}_{_N})": _wide_resnet,
    r"dm_preact_resnet(18|34)": _dm_preact_resnet,
    r"vgg(11|13|16|19)": lambda depth, **common: VGG(int(depth), **common),
    rf"densenet(121|161|169|201)(?:_k{_N})?": _densenet,
    r"inception_v3": InceptionV3,
    rf"zero_shot_d{_N}_(\w+)": _zero_shot,
    r"noised_(\w+)": _noised,
    rf"clip_vit_p{_N}_i{_N}_w{_N}_l{_N}_d{_N}(_linear)?": clip_vit,
    rf"clip_resnet_b{_N}_{_N}_{_N}_{_N}_i{_N}_w{_N}_d{_N}(_linear)?": clip_resnet,
}
EXAMPLES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    *(
        "cifar_resnet20_b",
        "cifar_resnet20_w32",
        "resnet18_w320",
        "resnext29_4x32d",
        "preact_resnet18",
        "preact_resnet10_w32",
    ),
    *("preact_resnet18_nolastbn", "preact_resnet18_nolastbn_xshortcut"),
    *("wide_resnet_28_10", "wide_resnet_34_10", "wide_resnet_34_w320_640_512"),
    *("dm_wide_resnet_28_10", "dm_preact_resnet18"),
    *(f"vgg{depth}" for depth in (11, 13, 16, 19)),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *("densenet121_k12", "inception_v3"),
)


def build(arch: str, *, num_classes: int, activation: str = "relu", options: dict[str, Any] | None = None) -> nn.Module:
    """A freshly initialised network, pixels [N,3,H,W] (normalised) -> logits [N,num_classes].

    Ours are for small images. W is the width of the first stage, the next ones double it:

    - resnet10|18|34|50|101|152[_wW], W 64 (MadryLab robustness: resnet18wide is resnet18_w320, ResNet18Thin is _w48),
      and ResNeXt resnextDEPTH_GROUPSxWIDTHd;
    - cifar_resnetDEPTH[_b][_wW], DEPTH 6n + 2 (20, 32, 44, 56, 110), W 16: the CIFAR networks of He et al. 2016, three
      stages, shortcuts without weights (option A); _b: with weights (option B);
    - preact_resnet10|18|34|50|101|152[_wW][_nolastbn][_xshortcut], W 64; nolastbn: no batch norm before the head;
      xshortcut: projections take x, not act(bn(x));
    - wide_resnet_DEPTH_WIDEN, or wide_resnet_DEPTH_wW1_W2_W3 by the widths of the stages;
    - dm_wide_resnet_..., dm_preact_resnet18|34: DeepMind's (Gowal et al. 2020, arXiv:2010.03593), with
      TensorFlow's padding; the latter projects x with 3x3 convolutions;
    - vgg11|13|16|19 (with batch norms), densenet121|161|169|201[_kGROWTH], inception_v3;
    - clip_vit_pPATCH_iIMAGE_wWIDTH_lLAYERS_dEMBEDDING[_linear], clip_resnet_bBLOCKS_iIMAGE_wWIDTH_dEMBEDDING[_linear]
      (BLOCKS of four stages: 3_4_6_3): CLIP's image encoders, and a zero-shot head or (_linear) a linear layer;
    - noised_NAME: one of the networks of convolutions that is told the noise on its images (noised.Noised);
    - zero_shot_dEMBEDDING_NAME: one of the networks above, whose outputs are an embedding, and a zero-shot head.

    Of libraries: "torchvision:NAME", "timm:NAME", "transformers:NAME", "open_clip:NAME", and "package.module:function"
    (called with num_classes=...); options are further keyword arguments for it, the activation is its own. Raises
    UserError for any other name, and for an activation or options that the architecture would not use.
    """
    if ":" in arch:
        if activation != "relu":
            raise UserError(f"activation: {activation!r} cannot be chosen for {arch}, which brings its own")
        return libraries.build(arch, num_classes, options or {})
    if options:
        raise UserError(f"options: {', '.join(options)} mean nothing to {arch}; only networks of libraries take any")
    if activation not in ACTIVATIONS:
        raise UserError(f"activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
    for pattern, family in FAMILIES.items():
        if match := re.fullmatch(pattern, arch, re.ASCII):
            return family(*match.groups(), num_classes=num_classes, act=ACTIVATIONS[activation])
    near = difflib.get_close_matches(arch, EXAMPLES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"arch: {arch!r} is not known{hint} Known: {', '.join(EXAMPLES)} (other depths and widths likewise), "
        f"torchvision:NAME, timm:NAME, transformers:NAME, package.module:function"
    )
