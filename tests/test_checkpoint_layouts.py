"""Foreign files against independent networks that have the foreign names: the same logits after loading."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from robust_models import NORMALIZERS, Normalizer, UserError, load, save
from robust_models.architectures import build
from robust_models.checkpoints.infer.own_networks import our_network
from robust_models.checkpoints.layouts import find_layout
from robust_models.checkpoints.ours import read_description
from robust_models.checkpoints.subtrees import find_network

FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "checkpoints"
X = torch.rand(2, 3, 32, 32)
NEW_MEAN, NEW_STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


class Post(nn.Module):
    """Batch norm and activation after each convolution; three convolutions make a bottleneck."""

    def __init__(self, planes_in: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck, out = bottleneck, planes * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1 = nn.Conv2d(planes_in, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or planes_in != out:
            self.shortcut = nn.Sequential(nn.Conv2d(planes_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            h = self.bn3(self.conv3(F.relu(h)))
        return F.relu(h + self.shortcut(x))


class Pre(nn.Module):
    """Batch norm and activation before each convolution; names of kuangliu's, or of the WideResNet family."""

    def __init__(self, planes_in: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(planes_in), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.equal, self.name = stride == 1 and planes_in == planes, shortcut
        if not self.equal:
            conv = nn.Conv2d(planes_in, planes, 1, stride, bias=False)
            setattr(self, shortcut, nn.Sequential(conv) if shortcut == "shortcut" else conv)

    def forward(self, x):
        h = F.relu(self.bn1(x))
        identity = x if self.equal else getattr(self, self.name)(h)
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + identity


class Net(nn.Module):
    """kind: "post", "bottleneck", "pre" (kuangliu's names) or "wide" (xternalz's)."""

    def __init__(self, kind: str, width: int, depths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.kind = kind
        stem = 16 if kind == "wide" else width
        self.conv1, planes = nn.Conv2d(3, stem, 3, 1, 1, bias=False), stem
        self.stages: list[str] = []
        for i, depth in enumerate(depths):
            out, blocks = width * 2**i, []
            for j in range(depth):
                stride = 2 if i and not j else 1
                if kind in ("pre", "wide"):
                    blocks.append(Pre(planes, out, stride, "shortcut" if kind == "pre" else "convShortcut"))
                    planes = out
                else:
                    blocks.append(Post(planes, out, stride, kind == "bottleneck"))
                    planes = out * (4 if kind == "bottleneck" else 1)
            stage: nn.Module = nn.Sequential(*blocks)
            if kind == "wide":
                stage = nn.ModuleDict({"layer": stage})
            self.stages.append(f"block{i + 1}" if kind == "wide" else f"layer{i + 1}")
            setattr(self, self.stages[-1], stage)
        norm_width = planes if kind in ("pre", "wide") else stem
        setattr(self, "bn" if kind == "pre" else "bn1", nn.BatchNorm2d(norm_width))
        setattr(self, "fc" if kind == "wide" else "linear", nn.Linear(planes, classes))

    def forward(self, x):
        before = self.kind in ("post", "bottleneck")
        norm = self.bn if self.kind == "pre" else self.bn1
        h = self.conv1(x)
        h = F.relu(norm(h)) if before else h
        for name in self.stages:
            stage = getattr(self, name)
            h = (stage["layer"] if self.kind == "wide" else stage)(h)
        h = h if before else F.relu(norm(h))
        h = h.mean((2, 3))
        return self.fc(h) if self.kind == "wide" else self.linear(h)


def lively(network: nn.Module) -> nn.Module:
    """With batch norms that have seen something, in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
    return network.eval()


def assert_same(model: nn.Module, network: nn.Module, normalizer: Normalizer, x: Tensor = X) -> None:
    """Logits within 1e-5, in float64 so that only the mathematics counts."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (normalizer.mean, normalizer.std))
    with torch.no_grad():
        expected = network.double()((x.double() - mean) / std)
        logits = model.double()(x.double()).double()
    assert (logits - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


PREACT = ("pre", 16, (2, 2, 2, 2))


@pytest.mark.parametrize(
    ("kind", "width", "depths", "arch"),
    [
        ("post", 64, (2, 2, 2, 2), "resnet18"),
        ("pre", 16, (1, 1, 1, 1), "preact_resnet10_w16"),
        ("pre", 16, (2, 2, 2, 2), "preact_resnet18_w16"),
        ("wide", 16, (1, 1, 1), "wide_resnet_10_1"),
        ("wide", 32, (2, 2, 2), "wide_resnet_16_2"),
    ],
)
def test_families_are_recognised_and_give_the_same_logits(kind, width, depths, arch, tmp_path):
    network = lively(Net(kind, width, depths))
    torch.save({"net": nn.DataParallel(network).state_dict(), "acc": 91.5, "epoch": 7}, tmp_path / "ckpt.pth")
    model = load(tmp_path / "ckpt.pth")
    assert_same(model, network, NORMALIZERS["none"])
    assert model.description.arch == arch
    assert (model.image_size, model.class_names[0], model.training) == (32, "airplane", False)
    source = model.description.recipe["source"]
    assert source["layout"] == "state dict under net"
    assert source["told"] == {"acc": 91.5, "epoch": 7}
    assert source["normalizer"] == "none found, none assumed"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_robustness_file_loads_with_its_normaliser_though_its_classes_are_gone(legacy, tmp_path, monkeypatch):
    network = lively(Net("bottleneck", 64, (3, 4, 6, 3)))
    inner = network.state_dict()
    state = {f"module.{part}model.{name}": tensor for part in ("", "attacker.") for name, tensor in inner.items()}
    for prefix in ("module.normalizer.", "module.attacker.normalize."):
        state |= {prefix + "new_mean": NEW_MEAN.view(3, 1, 1), prefix + "new_std": NEW_STD.view(3, 1, 1)}
    gone = types.ModuleType("gone_library")
    monkeypatch.setitem(sys.modules, "gone_library", gone)
    gone.Parameters = type("Parameters", (), {"__module__": "gone_library"})
    gone.schedule = types.FunctionType((lambda epoch: 0.1).__code__, {}, "schedule")
    gone.schedule.__module__, gone.schedule.__qualname__ = "gone_library", "schedule"
    args = gone.Parameters()
    args.params, args.lr = {"eps": 0.5}, gone.schedule
    content = {"model": state, "optimizer": {"state": {}}, "schedule": args, "epoch": 150, "amp": None}
    torch.save(content, tmp_path / "cifar_l2_0_5.pt", _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "gone_library")

    model = load(tmp_path / "cifar_l2_0_5.pt")
    assert model.description.arch == "resnet50"
    assert model.description.normalizer == Normalizer(tuple(NEW_MEAN.tolist()), tuple(NEW_STD.tolist()))
    source = model.description.recipe["source"]
    assert source["layout"] == "MadryLab robustness, state dict under model"
    assert source["told"] == {"epoch": 150}
    assert {"optimizer", "schedule", "amp", "attacker.model"} <= set(source["ignored"])
    assert_same(model, network, model.description.normalizer, X[:, :, :16, :16])


@pytest.mark.parametrize("names", ["mu sigma", "mean std", "normalize.mean normalize.std", "0.mean 0.std"])
@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.module."])
def test_a_normaliser_in_a_plain_file_is_taken(names, prefix, tmp_path):
    network = lively(Net(*PREACT, classes=4))
    mean, std = names.split()
    inner = "1." if mean.startswith("0.") else prefix
    state = {inner + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({**state, mean: NEW_MEAN.view(1, 3, 1, 1), std: NEW_STD.view(1, 3, 1, 1)}, tmp_path / "a.pt")
    model = load(tmp_path / "a.pt")
    assert model.class_names == ("0", "1", "2", "3")
    assert model.description.recipe["source"]["normalizer"] == "from the file"
    assert_same(model, network, Normalizer(tuple(NEW_MEAN.tolist()), tuple(NEW_STD.tolist())))
    given = load(tmp_path / "a.pt", normalize="cifar10", class_names="abcd")
    assert given.description.normalizer == NORMALIZERS["cifar10"]
    assert given.class_names == ("a", "b", "c", "d")
    with pytest.raises(UserError, match="normalize: 'mnist' is none of none, cifar10, imagenet"):
        load(tmp_path / "a.pt", normalize="mnist")


def test_averaged_weights_only_when_asked(tmp_path):
    raw, averaged = lively(Net(*PREACT)), lively(Net(*PREACT))
    torch.save({"state_dict": raw.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "a.pt")
    assert_same(load(tmp_path / "a.pt", ema=True), averaged, NORMALIZERS["none"])
    assert_same(load(tmp_path / "a.pt"), raw, NORMALIZERS["none"])
    torch.save(raw.float().state_dict(), tmp_path / "b.pt")
    with pytest.raises(UserError, match="has no averaged weights"):
        load(tmp_path / "b.pt", ema=True)


def test_foreign_safetensors_and_what_they_become(tmp_path):
    network = lively(Net(*PREACT))
    save_file(dict(network.state_dict()), tmp_path / "a.safetensors")
    save(load(tmp_path / "a.safetensors"), tmp_path / "ours.safetensors")
    model = load(tmp_path / "ours.safetensors")
    assert_same(model, network, NORMALIZERS["none"])
    assert "safetensors" in model.description.recipe["source"]["layout"]


def test_unused_blocks_and_missing_counters_do_not_matter(tmp_path):
    network = lively(Net("wide", 16, (1, 1, 1)))
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    copies = {name.replace("block1", "sub_block1"): value for name, value in state.items() if "block1" in name}
    torch.save({**state, **copies}, tmp_path / "trades.pt")
    assert_same(load(tmp_path / "trades.pt"), network, NORMALIZERS["none"])


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_torchvision_networks_are_recognised(name, tmp_path):
    from torchvision.models import get_model

    network = lively(get_model(name, weights=None, num_classes=7))
    torch.save(network.state_dict(), tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", normalize="imagenet")
    assert (model.description.arch, model.image_size) == (f"torchvision:{name}", 224)
    assert_same(model, network, NORMALIZERS["imagenet"])


def test_what_does_not_fit_is_named(tmp_path):
    state = Net(*PREACT).state_dict()
    torch.save({**state, "layer1.0.se.weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"does not fit preact_resnet18_w16: 0 .* 1 unexpected \(layer1.0.se.weight\)"):
        load(tmp_path / "a.pt")
    torch.save({**state, "layer2.0.conv2.weight": torch.zeros(1, 2, 3, 3)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"blocks.2.branch.3.weight is \[1, 2, 3, 3\], expected \[32, 32, 3, 3\]"):
        load(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"does not fit torchvision:resnet18: \d+ tensors missing"):
        load(tmp_path / "a.pt", arch="torchvision:resnet18")


class Residual4b(nn.Module):
    """The part names of alpha-beta-CROWN's resnet4b: biases, no batch norms, two linear layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1)
        for stage, planes in ((1, 16), (2, 32)):
            first = nn.ModuleDict({"conv1": nn.Conv2d(planes, 32, 3, 2, 1), "conv2": nn.Conv2d(32, 32, 3, 1, 1)})
            first["shortcut"] = nn.Sequential(nn.Conv2d(planes, 32, 1, 2))
            second = nn.ModuleDict({"conv1": nn.Conv2d(32, 32, 3, 1, 1), "conv2": nn.Conv2d(32, 32, 3, 1, 1)})
            setattr(self, f"layer{stage}", nn.ModuleList([first, second]))
        self.linear1, self.linear2 = nn.Linear(512, 100), nn.Linear(100, classes)

    def forward(self, x):
        h = F.relu(self.conv1(x))
        for block in (*self.layer1, *self.layer2):
            identity = block["shortcut"](h) if "shortcut" in block else h
            h = F.relu(block["conv2"](F.relu(block["conv1"](h))) + identity)
        return self.linear2(F.relu(self.linear1(h.flatten(1))))


def resnet4b(num_classes: int) -> nn.Module:
    return Residual4b(num_classes)


def cifar_small(num_classes: int) -> nn.Module:
    convs = (nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU())
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, num_classes))


@pytest.mark.skipif(not FOREIGN.is_dir(), reason=f"other people's checkpoints are not at {FOREIGN}")
@pytest.mark.parametrize(
    ("file", "function", "first"),
    [
        ("resnet4b.pth", "resnet4b", r"26 tensors, first conv1.weight \[16, 3, 3, 3\]"),
        ("cifar_small_36px.pth", "cifar_small", r"8 tensors, first 0.weight \[16, 3, 4, 4\]"),
    ],
)
def test_other_peoples_files_load_once_their_architecture_is_given(file, function, first):
    model = load(FOREIGN / file, arch=f"{__name__}:{function}")
    logits = model(X)
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    assert model.class_names[0] == "airplane"
    with pytest.raises(UserError, match=first + r".*; pass --arch \(in Python: arch=\) torchvision:NAME"):
        load(FOREIGN / file)


@pytest.mark.parametrize(
    ("arch", "also"),
    [
        ("resnet10_w16", ()),
        ("resnet18", ()),
        ("resnet50_w16", ()),
        ("preact_resnet10_w16", ("preact_resnet10_w16_xshortcut",)),
        ("preact_resnet18_w16_nolastbn", ("preact_resnet18_w16_nolastbn_xshortcut",)),
        ("wide_resnet_16_2", ("dm_wide_resnet_16_2",)),
        ("wide_resnet_10_w32_32_48", ()),
    ],
)
def test_bare_tensors_under_our_own_names_are_recognised(arch, also):
    with torch.device("meta"):
        network = build(arch, num_classes=5)
    match = our_network(dict(network.state_dict()))
    assert match is not None
    assert (match.arch, match.also) == (arch, also)
    assert our_network({n: t for n, t in network.state_dict().items() if not n.startswith("blocks.1.")}) is None


NETWORK = {"conv1.weight": torch.rand(4, 3, 3, 3), "fc.weight": torch.rand(2, 4), "fc.bias": torch.rand(2)}


def named(prefix: str, scale: float = 1) -> dict[str, Tensor]:
    return {prefix + name: tensor * scale for name, tensor in NETWORK.items()}


@pytest.mark.parametrize(
    ("state", "ignored"),
    [
        (named("backbone.inner."), []),
        (named("any_word.") | {"criterion.weight": torch.rand(2)}, ["criterion"]),
        (named("model.") | {"class_weights": torch.rand(2), "seen": torch.tensor(3)}, ["class_weights", "seen"]),
        (named("model.") | named("teacher.", 2), ["teacher"]),
        (named("teacher.model.", 2) | named("my_net."), ["teacher"]),
        (named("model.") | named("ema_model.", 2) | {"val_acc.total": torch.tensor(1)}, ["ema_model", "val_acc"]),
        (named("other.", 2) | named("model."), ["other"]),
        (named("small.") | {"big.stem.weight": torch.rand(9, 3, 9, 9), "big.fc.weight": torch.rand(2, 9)}, ["small"]),
        (named("module.") | {"n_averaged": torch.tensor(7)}, ["n_averaged"]),
        (named("model.net.module."), []),
    ],
)
def test_the_network_is_found_among_what_stands_beside_it(state, ignored):
    network = find_network(state, ema=False)
    assert network.variants[0] is state
    if ignored == ["small"]:
        assert set(network.variants[-1]) == {"stem.weight", "fc.weight"}
    else:
        assert all(torch.equal(network.variants[-1][name], tensor) for name, tensor in NETWORK.items())
        assert len(network.variants[-1]) == len(NETWORK)
    assert network.ignored == ignored


@pytest.mark.parametrize(
    "state",
    [
        NETWORK,
        {"features.0.weight": torch.rand(4, 3, 3, 3), "classifier.weight": torch.rand(2, 4)},
        {
            "vit.patch.weight": torch.rand(4, 3, 3, 3),
            "vit.key.weight": torch.rand(4, 4),
            "head.weight": torch.rand(2, 4),
        },
        {"0.weight": torch.rand(4, 3, 3, 3), "2.weight": torch.rand(2, 4)},
        {"token": torch.rand(1, 1, 4), "net.0.weight": torch.rand(4, 3, 3, 3)},
    ],
)
def test_parts_of_one_network_stay_together(state):
    network = find_network(state, ema=False)
    assert network.variants[-1] is state
    assert not network.ignored


def test_a_wrapper_beside_an_unknown_module_is_tried_too():
    state = named("model.") | {"projector.weight": torch.rand(2, 2)}
    *guesses, likeliest = find_network(state, ema=False).variants
    assert likeliest is state
    assert [set(guess) for guess in guesses] == [set(NETWORK)]


@pytest.mark.parametrize(
    "content",
    [
        named("model.") | named("ema_model.", 2),
        {"state_dict": named("model."), "state_dict_ema": named("", 2)},
        {"model": NETWORK, "ema": {"decay": 0.99, "shadow": named("", 2)}},
        {"model": NETWORK, "ema": {"updates": 3, "module": named("model.", 2)}},
        {"params": NETWORK, "params_ema": named("", 2)},
        {"model": NETWORK, "model_ema": named("module.", 2) | {"n_averaged": torch.tensor(7)}},
        named("module.", 2) | {"n_averaged": torch.tensor(7)},
        {"state_dict": named("", 2), "current_model_state": NETWORK, "averaging_state": {"n_averaged": torch.tensor(7)}}
        | {"pytorch-lightning_version": "2.6"},
    ],
)
def test_averaged_weights_are_found_wherever_libraries_keep_them(content):
    found = find_layout(content, ema=True, where="file")
    assert torch.equal(found.state["fc.bias"], 2 * NETWORK["fc.bias"])
    if "n_averaged" not in content:
        found = find_layout(content, ema=False, where="file")
        assert torch.equal(found.state["fc.bias"], NETWORK["fc.bias"])


def test_a_file_with_averaged_weights_only_says_so():
    with pytest.raises(UserError, match=r"file holds averaged weights only \(under model_ema\); load it with ema"):
        find_layout({"model_ema": NETWORK}, ema=False, where="file")


def test_settings_beside_the_network_are_told():
    settings = {"lr": 0.1, "name": "a", "layers": [1, 2], "long": "x" * 2000}
    found = find_layout({"state_dict": NETWORK, "hyper_parameters": settings, "epoch": 3}, ema=False, where="file")
    assert found.metadata == {"hyper_parameters": {"lr": 0.1, "name": "a"}, "epoch": 3}


def test_a_normaliser_inside_wrappers_is_taken():
    for prefix in ("model.normalize.", "module.model.0."):
        inner = prefix.replace("0.", "1.") if "0." in prefix else "model."
        pair = {f"{prefix}mean": NEW_MEAN.view(1, 3, 1, 1), f"{prefix}std": NEW_STD.view(1, 3, 1, 1)}
        found = find_layout(pair | named(inner), ema=False, where="file")
        assert found.normalizer == Normalizer(tuple(NEW_MEAN.tolist()), tuple(NEW_STD.tolist()))
        assert set(found.state) == set(NETWORK)
        assert not found.ignored


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"arch": "os:system"}, "says that os:system builds its network, which runs that code; if you trust it, pass"),
        ({"arch": "timm:hf-hub:someone/evil"}, "says that timm:hf-hub:someone/evil builds"),
        ({"arch": 3}, "broken description .*arch is not text"),
        ({"class_names": []}, "class_names are not 1 to 50,000 texts"),
        ({"class_names": [1, 2]}, "class_names are not"),
        ({"image_size": 10**9}, "image_size is not a number of pixels up to 2048"),
        ({"normalizer": {"mean": [0.0], "std": [0.0]}}, "the normalizer is not"),
        ({"options": [1]}, "options that are a list"),
        ({"options": {"pretrained": True}}, "option pretrained, which a file may not set"),
        ({"options": {"depth": 10**7}}, "depth = 10000000, more than 131,072"),
        ({"options": {"config": {"image_size": 10**5}}}, "image_size = 100000, more than 2,048"),
        ({"options": {"a": [[[[[[1]]]]]]}}, "option a, nested too deeply"),
    ],
)
def test_a_hostile_description_is_refused(entries, message, tmp_path):
    whole = {"arch": "resnet18", "class_names": ["a", "b"], "image_size": 32, "threat_model": None}
    whole |= {"normalizer": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    assert read_description(json.dumps(whole), tmp_path).class_names == ("a", "b")
    with pytest.raises(UserError, match=message):
        read_description(json.dumps(whole | entries), tmp_path)
    if entries.get("arch") == "os:system":
        assert read_description(json.dumps(whole | entries), tmp_path, any_function=True).arch == "os:system"
