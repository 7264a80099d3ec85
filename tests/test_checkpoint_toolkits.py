"""Networks that other toolkits name, cut up or build differently: read by their tensors, equal in their logits."""

import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robust_models import UserError, load, save
from robust_models.architectures import build
from robust_models.architectures.clip import VisionTransformer
from robust_models.architectures.clip_resnet import ModifiedResNet
from robust_models.checkpoints import embedded_names
from robust_models.checkpoints.flags import CheckpointFlags


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x)


def shaken(network: nn.Module) -> nn.Module:
    """With weights and running statistics that all differ from where they begin."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.1 * torch.rand(tensor.shape, generator=generator)
            tensor.copy_(tensor + noise if "running" in name or tensor.ndim == 1 else tensor * (1 + noise))
    return network


# ConvStem: the paper's rows of layers, written out.


class _Channels(nn.Module):
    """Mean 0 and variance 1 over the channels of each position, by their definition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Wrapped(nn.Module):
    """The authors' stem, whose layers are called stem.N."""

    def __init__(self, stem: nn.Sequential) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class Normalising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Constant(nn.Module):
    """A normaliser without tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def step(i: int, o: int, stride: int, norm: type[nn.Module] = _Channels, *, bias: bool = True) -> list[nn.Module]:
    return [nn.Conv2d(i, o, 3, stride, 1, bias=bias), norm(o), nn.GELU()]


def batch_normed(i: int, o: int) -> list[nn.Module]:
    return step(i, o, 2, nn.BatchNorm2d, bias=False)


def vit_stem(width: int, out: int) -> nn.Sequential:
    widths = [3, width, 2 * width, 4 * width, 8 * width]
    layers = [layer for i, o in pairwise(widths) for layer in step(i, o, 2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, out, 1))


def vit(name: str, stem: nn.Module) -> nn.Module:
    import timm

    network = timm.create_model(name, num_classes=5)
    network.patch_embed.proj = stem
    return network


def convnext(name: str, stem: nn.Module) -> nn.Module:
    import timm

    network = timm.create_model(name, num_classes=5)
    network.stem = stem
    return network


CONV_STEMS = {
    "vit_tiny": lambda: (vit("vit_tiny_patch16_224", vit_stem(24, 192)), "timm:vit_tiny_patch16_224"),
    "vit_tiny, theirs": lambda: (vit("vit_tiny_patch16_224", Wrapped(vit_stem(48, 192))), "timm:vit_tiny_patch16_224"),
    "deit_small": lambda: (vit("deit_small_patch16_224", Wrapped(vit_stem(48, 384))), "timm:vit_small_patch16_224"),
    "convnext two": lambda: (
        convnext("convnext_atto", nn.Sequential(*step(3, 20, 2), *step(20, 40, 2))),
        "timm:convnext_atto",
    ),
    "convnext three": lambda: (
        convnext("convnext_femto", Wrapped(nn.Sequential(*step(3, 24, 2), *step(24, 36, 2), *step(36, 48, 1)))),
        "timm:convnext_femto",
    ),
    "batch norm": lambda: (
        convnext("convnext_pico", nn.Sequential(*batch_normed(3, 32), *batch_normed(32, 64))),
        "timm:convnext_pico",
    ),
}
WRAPPERS = {
    "none": lambda network: network,
    "0 and 1": lambda network: nn.Sequential(Normalising(), network),
    "1": lambda network: nn.Sequential(Constant(), network),
    "model": lambda network: nn.ModuleDict({"normalize": Normalising(), "model": network}),
}


@pytest.mark.parametrize(
    ("kind", "wrapper"), [*((k, "none") for k in CONV_STEMS), *(("convnext two", w) for w in WRAPPERS)]
)
def test_a_conv_stem_is_recognised_and_computes_what_the_paper_writes(kind, wrapper, tmp_path):
    network, arch = CONV_STEMS[kind]()
    shaken(network)
    torch.save(WRAPPERS[wrapper](network).state_dict(), tmp_path / "a.pt")
    model = load(tmp_path / "a.pt", quiet=True)
    assert model.description.arch == arch
    assert model.image_size == 224
    assert ("normalize" in model.description.assumptions) == (wrapper in ("none", "1"))
    x = torch.rand(2, 3, 224, 224)
    normalised = Normalising()(x) if wrapper in ("0 and 1", "model") else x
    torch.testing.assert_close(logits_of(model, x), logits_of(network, normalised), rtol=1e-4, atol=1e-4)
    save(model, tmp_path / "ours.safetensors")
    torch.testing.assert_close(logits_of(load(tmp_path / "ours.safetensors"), x), logits_of(model, x))


@pytest.mark.parametrize(
    ("kind", "also"),
    [(kind, f"timm:{kind}_patch16_224") for kind in ("deit_tiny", "deit_small", "deit_base")],
)
def test_another_network_with_the_same_tensors_keeps_the_stem(kind, also, tmp_path):
    width = {"deit_tiny": 192, "deit_small": 384, "deit_base": 768}[kind]
    network = vit(f"{kind}_patch16_224", Wrapped(vit_stem(width // 8, width)))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    model = load(tmp_path / "a.pt", arch=also, quiet=True)
    assert model.description.arch == also
    assert "arch" not in model.description.assumptions
    x = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(logits_of(model, x), logits_of(network, x), rtol=1e-4, atol=1e-4)


# fastai: Sequential(body, head), the head by its documentation.


def fastai(name: str, hidden: list[int], classes: int, *, bias: bool) -> nn.Module:
    resnet = build(f"torchvision:{name}", num_classes=9)

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)], 1)

    layers: list[nn.Module] = [Pool(), nn.Flatten()]
    width = 2 * resnet.fc.in_features
    for units in hidden:
        layers += [nn.BatchNorm1d(width), nn.Dropout(0.25), nn.Linear(width, units, bias=bias), nn.ReLU()]
        width = units
    layers += [nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, classes, bias=bias)]
    return nn.Sequential(nn.Sequential(*[*resnet.children()][:-2]), nn.Sequential(*layers))


@pytest.mark.parametrize(
    ("name", "hidden", "bias"),
    [("resnet18", [512], False), ("resnet34", [512], True), ("resnet50", [], False), ("resnet18", [64, 32], True)],
)
def test_a_learner_of_fastai_is_its_resnet_with_its_head(name, hidden, bias, tmp_path):
    network = shaken(fastai(name, hidden, 7, bias=bias))
    torch.save({"model": network.state_dict(), "opt": {"state": [], "hypers": []}}, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", normalize="none", quiet=True)
    assert (model.description.arch, model.description.num_classes) == (f"torchvision:{name}", 7)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(logits_of(model, x), logits_of(network, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.head(model.features(x)), model(x))
    assert load(tmp_path / "a.pth", quiet=True).description.assumptions["normalize"] == "the usual one of its family"


# mmpretrain, and the authors' ConvNeXt.

MM_VIT = {r"^patch_embed\.proj": "patch_embed.projection", r"^blocks\.": "layers.", r"\.norm(\d)\.": r".ln\1."}
MM_VIT |= {r"\.mlp\.fc1\.": ".ffn.layers.0.0.", r"\.mlp\.fc2\.": ".ffn.layers.1.", r"^norm\.": "ln1."}
STAGES = {r"^stem\.": "downsample_layers.0.", r"^stages\.(\d)\.downsample\.": r"downsample_layers.\1."}
STAGES |= {r"\.blocks\.(\d+)\.": r".\1."}
MM_CONVNEXT = STAGES | {r"\.conv_dw\.": ".depthwise_conv.", r"\.mlp\.fc": ".pointwise_conv", r"^head\.norm\.": "norm3."}
FB_CONVNEXT = STAGES | {r"\.conv_dw\.": ".dwconv.", r"\.mlp\.fc": ".pwconv", r"^head\.norm\.": "norm."}
FB_CONVNEXT |= {r"^head\.fc\.": "head."}


def respelt(name: str, rules: dict[str, str], head: str, theirs: str | None) -> str:
    if theirs and name.startswith(head):
        return theirs + name.removeprefix(head)
    for pattern, new in rules.items():
        name = re.sub(pattern, new, name)
    return f"backbone.{name}" if theirs else name


@pytest.mark.parametrize(
    ("arch", "rules", "head", "theirs"),
    [
        ("timm:vit_tiny_patch16_224", MM_VIT, "head.", "head.layers.head."),
        ("timm:vit_small_patch16_224", MM_VIT, "head.", "head.fc."),
        ("timm:vit_tiny_patch16_384", MM_VIT, "head.", "head.layers.head."),
        ("timm:convnext_atto", MM_CONVNEXT, "head.fc.", "head.fc."),
        ("timm:convnext_tiny", MM_CONVNEXT, "head.fc.", "head.fc."),
        ("timm:convnext_femto", FB_CONVNEXT, "head.fc.", None),
        ("timm:convnext_tiny", FB_CONVNEXT, "head.fc.", None),
        ("torchvision:resnet34", {}, "fc.", "head.fc."),
        ("torchvision:resnext50_32x4d", {}, "fc.", "head.fc."),
    ],
)
def test_names_of_mmpretrain_and_of_convnexts_authors(arch, rules, head, theirs, tmp_path):
    network = shaken(build(arch, num_classes=6))
    state = {respelt(name, rules, head, theirs): tensor for name, tensor in network.state_dict().items()}
    assert state.keys() != network.state_dict().keys()
    torch.save({"state_dict": state, "meta": {"epoch": 3}, "message_hub": {}}, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", quiet=True)
    fits = [model.description.arch, *model.description.recipe["source"]["also_fits"]]
    assert arch in fits or arch.replace("384", "224") in fits
    x = torch.rand(1, 3, model.image_size, model.image_size)
    torch.testing.assert_close(logits_of(model, x), logits_of(network, x), rtol=1e-4, atol=1e-4)


# CLIP: transformers' own encoder with equal weights is the reference, timm's of the ResNets.

CLIP_CHANNELS = [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]


def clip(act: str, patch: int, size: int, layers: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """transformers' encoder, and its tensors under the names that OpenAI and open_clip give them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=2, image_size=size,
        patch_size=patch, projection_dim=48, hidden_act=act,
    )  # fmt: skip
    network = shaken(transformers.CLIPVisionModelWithProjection(config)).eval()
    theirs = network.state_dict()
    body = "vision_model." if any(name.startswith("vision_model.") for name in theirs) else ""
    state = {
        "conv1.weight": theirs[f"{body}embeddings.patch_embedding.weight"],
        "class_embedding": theirs[f"{body}embeddings.class_embedding"],
        "positional_embedding": theirs[f"{body}embeddings.position_embedding.weight"],
        "proj": theirs["visual_projection.weight"].T.contiguous(),
    }
    for end in ("weight", "bias"):
        state[f"ln_pre.{end}"] = theirs[f"{body}pre_layrnorm.{end}"]
        state[f"ln_post.{end}"] = theirs[f"{body}post_layernorm.{end}"]
        for i in range(layers):
            of, to = f"{body}encoder.layers.{i}.", f"transformer.resblocks.{i}."
            qkv = [theirs[f"{of}self_attn.{part}_proj.{end}"] for part in "qkv"]
            state[f"{to}attn.in_proj_{end}"] = torch.cat(qkv)
            state[f"{to}attn.out_proj.{end}"] = theirs[f"{of}self_attn.out_proj.{end}"]
            state[f"{to}mlp.c_fc.{end}"] = theirs[f"{of}mlp.fc1.{end}"]
            state[f"{to}mlp.c_proj.{end}"] = theirs[f"{of}mlp.fc2.{end}"]
            for n in (1, 2):
                state[f"{to}ln_{n}.{end}"] = theirs[f"{of}layer_norm{n}.{end}"]
    return network, state


def whole_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(8), "token_embedding.weight": torch.ones(9, 8)}
    return {**{f"visual.{n}": t for n, t in state.items()}, **text, "logit_scale": torch.tensor(3.0)}


FILES = {
    "encoder (FARE, TeCoA)": lambda state: state,
    "visual": lambda state: {f"visual.{n}": t for n, t in state.items()},
    "data parallel": lambda state: {"state_dict": {f"module.visual.{n}": t for n, t in state.items()}, "epoch": 2},
    "whole CLIP": whole_clip,
}


@pytest.mark.parametrize(
    ("file", "act", "patch", "size", "layers"),
    [
        *((file, "quick_gelu", 8, 32, 2) for file in FILES),
        ("visual", "gelu", 14, 56, 1),
        ("whole CLIP", "gelu", 16, 64, 3),
    ],
)
@pytest.mark.parametrize("head", ["zero-shot", "transposed", "linear"])
def test_an_encoder_of_clip_with_a_head_is_a_classifier(file, act, patch, size, layers, head, tmp_path):
    network, state = clip(act, patch, size, layers)
    torch.save(FILES[file](state), tmp_path / "encoder.pt")
    weight, bias = torch.randn(5, 48), torch.randn(5)
    content = {"zero-shot": weight, "transposed": weight.T, "linear": {"weight": weight, "bias": bias}}[head]
    torch.save(content, tmp_path / "head.pt")
    flags = CheckpointFlags(head=str(tmp_path / "head.pt"), activation=None if act == "quick_gelu" else act)
    model = flags.load(str(tmp_path / "encoder.pt"), quiet=True)

    x = torch.rand(3, 3, size, size)
    mean, std = torch.tensor(CLIP_CHANNELS).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        embedded = network(pixel_values=(x - mean) / std).image_embeds
    scale = torch.tensor(3.0).exp() if file == "whole CLIP" else 100
    cosine = nn.functional.cosine_similarity(embedded[:, None], weight[None], dim=2)
    expected = embedded @ weight.T + bias if head == "linear" else scale * cosine
    torch.testing.assert_close(logits_of(model, x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.head(model.features(x)), model(x), rtol=1e-4, atol=1e-4)

    name = f"clip_vit_p{patch}_i{size}_w128_l{layers}_d48" + ("_linear" if head == "linear" else "")
    assert (model.description.arch, model.image_size) == (name, size)
    assumed = {"normalize", "class_names"} | ({"activation"} if act == "quick_gelu" else set())
    assumed |= {"head"} if head != "linear" and file != "whole CLIP" else set()
    assert {*model.description.assumptions} == assumed
    assert model.description.recipe["source"]["told"]["head"].startswith("linear" if head == "linear" else "zero-shot")
    save(model, tmp_path / "ours.safetensors")
    torch.testing.assert_close(logits_of(load(tmp_path / "ours.safetensors", quiet=True), x), logits_of(model, x))


@pytest.mark.parametrize(
    ("file", "scale"), [("encoder (FARE, TeCoA)", 100), ("data parallel", 100), ("whole CLIP", 20.0855)]
)
@pytest.mark.parametrize(("blocks", "width", "size"), [((1, 2, 1, 1), 16, 64), ((2, 1, 3, 1), 32, 32)])
def test_an_encoder_of_clip_that_is_a_resnet_too(file, scale, blocks, width, size, tmp_path):
    encoder = shaken(ModifiedResNet(blocks, size, width, 48, nn.ReLU)).eval()
    weight = torch.randn(5, 48)
    torch.save(FILES[file](encoder.state_dict()), tmp_path / "encoder.pt")
    torch.save(weight, tmp_path / "head.pt")
    model = load(tmp_path / "encoder.pt", head=tmp_path / "head.pt", quiet=True)
    assert model.description.arch == f"clip_resnet_b{'_'.join(map(str, blocks))}_i{size}_w{width}_d48"
    assert model.image_size == size
    x = torch.rand(3, 3, size, size)
    mean, std = torch.tensor(CLIP_CHANNELS).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        cosine = nn.functional.cosine_similarity(encoder((x - mean) / std)[:, None], weight[None], dim=2)
    torch.testing.assert_close(logits_of(model, x), scale * cosine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.head(model.features(x)), model(x), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, 0].sum(), x)
    assert gradient.abs().flatten(1).amax(1).min() > 0


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection"])
@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize(("act", "width", "heads"), [("quick_gelu", 128, 2), ("gelu", 1280, 16)])
def test_a_clip_that_transformers_wrote_without_its_folder(kind, prefix, act, width, heads, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2, "num_attention_heads": heads}
    vision = {**sizes, "hidden_act": act, "image_size": 64, "patch_size": 16, "projection_dim": 48}
    if kind == "CLIPModel":
        text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)
    else:
        config = transformers.CLIPVisionConfig(**vision)
    network = shaken(getattr(transformers, kind)(config)).eval()
    state = network.state_dict()
    if kind == "CLIPVisionModelWithProjection":  # older and newer versions call its tensors differently
        bare = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
        state = {n if n.startswith("visual_projection") else f"{prefix}{n}": tensor for n, tensor in bare.items()}
    torch.save(state, tmp_path / "model.bin")
    torch.save({"weight": torch.eye(48), "bias": torch.zeros(48)}, tmp_path / "head.pt")
    flags = CheckpointFlags(head=str(tmp_path / "head.pt"), activation=act)
    model = flags.load(str(tmp_path / "model.bin"), quiet=True)
    x = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor(CLIP_CHANNELS).view(2, 1, 3, 1, 1)
    embed = getattr(network, "get_image_features", network)
    with torch.no_grad():
        found = embed(pixel_values=(x - mean) / std)
    expected = getattr(found, "image_embeds", getattr(found, "pooler_output", found))
    torch.testing.assert_close(logits_of(model, x), expected, rtol=1e-4, atol=1e-4)
    del state["visual_projection.weight"]
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"head: .* is no ViT and no ResNet of CLIP"):
        flags.load(str(tmp_path / "model.bin"), quiet=True)


@pytest.mark.parametrize("name", ["base_patch32", "huge_patch14", "giant_patch14", "gigantic_patch14"])
def test_clips_large_transformers_are_timms_with_equal_weights(name):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(f"vit_{name}_clip_224", num_classes=48, depth=1, img_size=64).eval()
    patch, width = theirs.patch_embed.patch_size[0], theirs.embed_dim
    encoder = shaken(VisionTransformer(patch, 64, width, 1, 48, nn.GELU)).eval()
    state = {f"visual.{name}": tensor for name, tensor in encoder.state_dict().items()}
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, theirs))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits_of(encoder, x), logits_of(theirs, x), rtol=1e-4, atol=1e-4)


def test_clips_resnet_is_timms_with_equal_weights():
    timm = pytest.importorskip("timm")
    encoder = shaken(ModifiedResNet((3, 4, 6, 3), 224, 64, 1024, nn.ReLU)).eval()
    theirs = timm.create_model("resnet50_clip", num_classes=1024).eval()
    state = {f"visual.{name}": tensor for name, tensor in encoder.state_dict().items()}
    theirs.load_state_dict(timm.models.byobnet.checkpoint_filter_fn(state, theirs))
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(logits_of(encoder, x), logits_of(theirs, x), rtol=1e-4, atol=1e-4)


def test_a_head_that_does_not_fit_or_is_missing_is_one_line(tmp_path):
    _, state = clip("quick_gelu", 8, 32, 1)
    encoder, head = tmp_path / "encoder.pt", tmp_path / "head.pt"
    torch.save(state, encoder)
    torch.save(torch.randn(5, 47), head)
    torch.save(build("resnet10_w8", num_classes=4).state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(UserError, match="is an image encoder of CLIP, without classes; give --head FILE"):
        load(encoder)
    with pytest.raises(UserError, match=r"head.pt has weight \[5, 47\], expected weight \[classes, 48\]"):
        load(encoder, head=head)
    with pytest.raises(UserError, match="head: no file"):
        load(encoder, head=tmp_path / "none.pt")
    with pytest.raises(UserError, match="no ViT and no ResNet of CLIP, and only such encoders take a head"):
        load(tmp_path / "resnet.pt", head=head)
    with pytest.raises(UserError, match="is a classifier of this project, which has one"):
        load(embedded_names()[0], head=head)


@pytest.mark.parametrize(
    ("encoder", "head", "message"),
    [
        ({"proj": torch.ones(128)}, torch.randn(5, 48), "no ViT and no ResNet of CLIP"),
        ({"proj": torch.tensor(1.0)}, torch.randn(5, 48), "no ViT and no ResNet of CLIP"),
        ({"positional_embedding": torch.ones(7, 128)}, torch.randn(5, 48), "does not fit"),
        ({"conv1.weight": torch.ones(128)}, torch.randn(5, 48), "fits no architecture"),
        (
            {},
            {"weight": torch.randn(5, 48), "logit_scale": torch.ones(3)},
            "logit_scale of .* is not one finite",
        ),
        ({}, {"weight": torch.randn(5, 48), "logit_scale": torch.tensor(1e9)}, "is not one finite number"),
        ({}, {"weight": torch.randn(5, 48), "bias": torch.randn(4)}, r"head.bias is \[4\], expected \[5\]"),
        ({}, torch.full((5, 48), float("nan")), "head.weight holds 240 NaN"),
        ({}, torch.randn(48), r"head.pt has weight \[48\]"),
        ({}, [torch.randn(5, 48)], "has no tensors"),
    ],
)
def test_encoders_and_heads_that_are_broken_are_one_line(encoder, head, message, tmp_path):
    _, state = clip("quick_gelu", 8, 32, 1)
    torch.save({**state, **encoder}, tmp_path / "encoder.pt")
    torch.save(head, tmp_path / "head.pt")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "encoder.pt", head=tmp_path / "head.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["visual.trunk.stem.0.weight", "visual.head.proj.weight", "logit_scale"], "built on a network of timm"),
        (["trunk.patch_embed.proj.weight", "head.proj.weight"], "of which only OpenAI's ViTs and ResNets are read"),
        (["vision_model.embeddings.patch_embedding.weight", "visual_projection.weight"], "encoder of transformers"),
        (["backbone.layer0.0.conv.weight", "head.fc.weight"], "under the names of mmpretrain"),
        (["backbone.patches.weight", "head.layers.head.weight"], "under the names of mmpretrain"),
        (["0.0.weight", "0.5.conv.weight", "1.2.running_mean", "1.4.weight"], "a learner of fastai"),
    ],
)
def test_a_kind_that_is_not_read_is_named(names, kind, tmp_path):
    torch.save({name: torch.ones(4, 4) for name in names}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=kind) as caught:
        load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


STEM = {"convolutions": [[8, 3], [40, 3]], "norm": "layer", "bias": True}


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("timm:convnext_atto", {"conv_stem": {**STEM, "norm": "group"}}),
        ("timm:convnext_atto", {"conv_stem": {**STEM, "convolutions": [[8]]}}),
        ("timm:convnext_atto", {"conv_stem": {**STEM, "convolutions": [[-8, 3]]}}),
        ("timm:convnext_atto", {"conv_stem": {**STEM, "strides": [2]}}),
        ("timm:convnext_atto", {"conv_stem": [1, 2]}),
        ("timm:convnext_atto", {"conv_stem": "deep"}),
        ("timm:resnet18", {"conv_stem": STEM}),
        ("timm:resnet18", {"fastai_head": {"hidden": [], "bias": True}}),
        ("torchvision:vgg11", {"fastai_head": {"hidden": [], "bias": True}}),
        ("torchvision:densenet121", {"fastai_head": {"hidden": [], "bias": True}}),
        ("torchvision:resnet18", {"fastai_head": {"hidden": "ab", "bias": True}}),
        ("torchvision:resnet18", {"fastai_head": {"bias": True}}),
        ("torchvision:resnet18", {"fastai_head": 3}),
        ("torchvision:resnet18", {"conv_stem": STEM}),
        ("transformers:ViTForImageClassification", {"conv_stem": STEM}),
    ],
)
def test_options_that_replace_what_is_not_there_are_refused(arch, options):
    with torch.device("meta"), pytest.raises(UserError, match=r"options|arch|config"):
        build(arch, num_classes=3, options=options)
