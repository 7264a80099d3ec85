"""Networks of all kinds of people: called as they can be, refused in one line where they compute nothing of use."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robust_models import Description, RobustClassifier, UserError, load, save
from robust_models.architectures import build
from robust_models.checkpoints.flags import CheckpointFlags, split_flags
from robust_models.checkpoints.infer import infer
from robust_models.classifier import check_finite
from robust_models.cli import main as models
from robust_models.features import open_features
from robust_models.runtime.device import place
from robust_models.runtime.distributed import _printed

HERE = "tests.test_checkpoint_networks"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "checkpoints"


def body(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())


class Plain(nn.Module):
    """A body, its mean and a head."""

    def __init__(self, head: nn.Module, channels: int = 3) -> None:
        super().__init__()
        self.body, self.fc = body(channels), head

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Viewed(nn.Module):
    """Flattens a map larger than 1x1 with view(), which channels_last tensors refuse; made for images of `size`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.body, self.fc = body(), nn.Linear(6 * (size // 2) ** 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.fc(h.view(len(h), -1))


class Auxiliary(Plain):
    """A second head that stands after the classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Linear(6, classes))
        self.rotation = nn.Linear(6, 9)


class TwoHeads(Plain):
    """The mean of two heads, as distilled transformers have it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 4))
        self.fc2 = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).mean((2, 3))
        return (self.fc(h) + self.fc2(h)) / 2


class HeadFirst(Plain):
    """The head is registered before a linear layer that gives no logits."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 4))
        self.mixed = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mixed(self.body(x).mean((2, 3))))


class Several(Plain):
    """Logits and features."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).mean((2, 3))
        return self.fc(h), h


def without_arguments() -> nn.Module:
    return Plain(nn.Linear(6, 4))


def with_num_classes(num_classes: int = 1000) -> nn.Module:
    return Plain(nn.Linear(6, num_classes))


def with_another_word(n_classes: int) -> nn.Module:
    return Plain(nn.Sequential(nn.Dropout(), nn.Linear(6, n_classes)))


def with_auxiliary_head(num_classes: int) -> nn.Module:
    return Auxiliary(num_classes)


def viewed() -> nn.Module:
    return Viewed(32)


def viewed_28() -> nn.Module:
    return Viewed(28)


def two_heads() -> nn.Module:
    return TwoHeads()


def head_first() -> nn.Module:
    return HeadFirst()


def grey() -> nn.Module:
    return Plain(nn.Linear(6, 4), channels=1)


def one_number() -> nn.Module:
    return Plain(nn.Linear(6, 1))


def several() -> nn.Module:
    return Several(nn.Linear(6, 4))


def a_list() -> list[nn.Module]:
    return [Plain(nn.Linear(6, 4))]


def needs_depth(depth: int) -> nn.Module:
    return Plain(nn.Linear(6, depth))


def stored(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("function", "called"),
    [
        ("without_arguments", "nothing"),
        ("with_num_classes", "num_classes=4"),
        ("with_another_word", "n_classes=4"),
        ("with_auxiliary_head", "num_classes=4"),
        ("viewed", "nothing"),
        ("viewed_28", "nothing"),
    ],
)
def test_a_function_is_called_as_it_can_be(function, called, tmp_path):
    network = (globals()[function](4) if "=" in called else globals()[function]()).eval()
    model = load(stored(network, tmp_path / "a.pt"), arch=f"{HERE}:{function}")
    size = 28 if function.endswith("28") else 32
    assert (model.description.num_classes, model.image_size) == (4, size)
    assert model.description.recipe["source"]["arch"] == f"as given, called with {called}"
    x = torch.rand(3, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(place(model, torch.device("cpu"), "fp32")(x), network(x))
        torch.testing.assert_close(model.head(model.features(x)), model(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("grey", "takes images of 1 channels; only networks for RGB images are read"),
        ("one_number", "gives one number for an image; a classifier here has two classes or more"),
        ("several", "gives a tuple of Tensor, Tensor, expected logits"),
        ("a_list", "gives a list, expected a torch.nn.Module"),
        ("needs_depth", "missing 1 required positional argument: 'depth'"),
        ("nowhere", "has no attribute 'nowhere'"),
    ],
)
def test_a_network_that_is_no_classifier_here_is_one_line(function, message, tmp_path):
    network = globals()[function]() if function in ("grey", "one_number", "several") else without_arguments()
    with pytest.raises(UserError, match=message) as caught:
        load(stored(network, tmp_path / "a.pt"), arch=f"{HERE}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "head"),
    [
        (Plain(nn.Linear(6, 4)), "fc"),
        (Plain(nn.Sequential(nn.Dropout(), nn.Linear(6, 4))), "fc.1"),
        (Auxiliary(4), "fc"),
        (HeadFirst(), "fc"),
        (TwoHeads(), None),
        (Plain(nn.Sequential(nn.Linear(6, 4), nn.Softmax(1))), None),
        (Plain(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))), "fc.1"),
    ],
)
def test_features_and_head_reproduce_the_logits_or_are_not_offered(network, head):
    model = RobustClassifier(network, Description("mine", tuple("abcd"), 32)).train()
    x = torch.rand(3, 3, 32, 32)
    if head is None:
        with pytest.raises(UserError, match="no linear layer gives the logits"):
            model.features(x)
    else:
        assert model.head is network.get_submodule(head)
        assert all(module.training for module in model.modules())  # as found
        model.eval()
        torch.testing.assert_close(model.head(model.features(x)), model(x))


def test_a_distilled_transformer_has_no_features():
    import timm

    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4, img_size=32, depth=1).eval()
    model = RobustClassifier(network, Description("timm:deit_tiny_distilled_patch16_224", tuple("abcd"), 32))
    with pytest.raises(UserError, match="so it has no features to take"):
        _ = model.head


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("torchvision:resnet18", "fc."),
        ("timm:resnet18", "fc."),
        ("timm:convnext_atto", "head.fc."),
        ("resnet10_w8", "head."),
        ("preact_resnet10_w8", "head."),
    ],
)
def test_a_backbone_gets_a_fresh_head_for_training_only(arch, head, tmp_path):
    state = build(arch, num_classes=4).state_dict()
    torch.save({name: t for name, t in state.items() if not name.startswith(head)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"2 tensors missing \({head}weight, {head}bias\)"):
        load(tmp_path / "a.pt", arch=arch, class_names="abcd")
    model = load(tmp_path / "a.pt", arch=arch, class_names="abcd", fresh_head=True)
    for name, tensor in model.network.state_dict().items():
        if tensor.ndim > 1 or not name.startswith(head):  # biases may all begin at zero
            assert torch.equal(tensor, state[name]) != name.startswith(head)
    assert model.head.out_features == 4
    torch.save({name: t for name, t in state.items() if not name.endswith("bias")}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="tensors missing"):
        load(tmp_path / "b.pt", arch=arch, class_names="abcd", fresh_head=True)


# Numbers that are none.


@pytest.mark.parametrize("kind", ["pt", "safetensors", "ours"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("head.weight", "nan"), ("stem.0.weight", "inf"), ("blocks.0.branch.1.running_var", "nan"), ("head.bias", "-inf")],
)
def test_weights_that_are_not_finite_are_refused_by_name(kind, name, value, tmp_path):
    network = build("resnet10_w8", num_classes=4)
    network.state_dict()[name].view(-1)[0] = float(value)
    file = tmp_path / ("a.pt" if kind == "pt" else "a.safetensors")
    if kind == "pt":
        torch.save(network.state_dict(), file)
    elif kind == "safetensors":
        save_file(network.state_dict(), file)
    else:
        save(RobustClassifier(network, Description("resnet10_w8", tuple("abcd"), 32)), file)
    with pytest.raises(UserError, match=f"{name} holds 1 NaN or infinite number"):
        load(file, arch="resnet10_w8")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_counted(value):
    logits = torch.zeros(5, 3)
    assert check_finite(logits, "logits") is logits
    logits[1, 2] = logits[4, 0] = float(value)
    with pytest.raises(UserError, match="logits: NaN or infinite for 2 of 5 images"):
        check_finite(logits, "logits")


def test_inspect_does_not_count_logits_that_are_nan(tmp_path, capsys):
    network = build("resnet10_w8", num_classes=4)
    for tensor in network.parameters():
        tensor.data.mul_(1e30)
    np.savez(tmp_path / "x.npz", arr_0=np.full((4, 32, 32, 3), 200, np.uint8), arr_1=np.arange(4))
    file = stored(network, tmp_path / "a.pt")
    assert models(["inspect", str(file), "--data", str(tmp_path / "x.npz"), "--device", "cpu"]) == 2
    assert "NaN or infinite for 4 of 4 images" in capsys.readouterr().err


# The same tensors, the same file.


def test_equal_networks_have_equal_files_in_every_process(tmp_path):
    code = (
        "import sys, torch; from robust_models import Description, RobustClassifier, save; torch.manual_seed(0); "
        "d = Description('resnet10_w8', ('a', 'b'), 32, scores={'clean': .5}); "
        "save(RobustClassifier.from_description(d), sys.argv[1])"
    )
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, file in enumerate(files):
        environment = {**os.environ, "PYTHONHASHSEED": str(i)}
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=environment, timeout=120)
    assert len({file.read_bytes() for file in files}) == 1
    assert load(files[0]).class_names == ("a", "b")


# Files of other people.


def shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def mmpretrain_name(name: str) -> str:
    return ("head." if name.startswith("fc.") else "backbone.") + name


@pytest.mark.parametrize(
    ("content", "ema"),
    [
        (lambda s: {"weights": s}, False),
        (lambda s: (s, 17), False),
        (lambda s: (17, s), False),
        (lambda s: [s, {"epoch": 3}], False),
        (lambda s: {"state": {"model": {f"module.{n}": t for n, t in s.items()}, "optimizers": {}}, "rng": [1]}, False),
        (lambda s: {"model": s, "opt": {"state": {}}}, False),
        (lambda s: {"state_dict": shifted(s), "swa_state_dict": s}, True),
        (lambda s: {"model": shifted(s), "swa_model": {f"module.{n}": t for n, t in s.items()}}, True),
        (lambda s: {"state_dict": {mmpretrain_name(n): t for n, t in s.items()}, "meta": {"epoch": 3}}, False),
    ],
)  # fmt: skip
def test_files_of_other_trainers_are_taken_apart(content, ema, tmp_path):
    state = build("torchvision:resnet18", num_classes=5).state_dict()
    torch.save(content(state), tmp_path / "a.pt")
    model = load(tmp_path / "a.pt", ema=ema)
    assert model.description.arch == "torchvision:resnet18"
    torch.testing.assert_close(model.network.state_dict()["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize(
    ("make", "arch", "options"),
    [
        ("wide_resnet50_2", "torchvision:wide_resnet50_2", {}),
        ({"width_per_group": 192}, "torchvision:resnet50", {"groups": 1, "width_per_group": 192}),
        ({"width_per_group": 256}, "torchvision:resnet50", {"groups": 1, "width_per_group": 256}),
        ({"groups": 8, "width_per_group": 16}, "torchvision:resnet50", {"groups": 8, "width_per_group": 16}),
    ],
)
def test_wide_and_grouped_resnets_of_torchvision(make, arch, options):
    from torchvision.models import get_model

    with torch.device("meta"):
        network = get_model(make if isinstance(make, str) else "resnet50", **({} if isinstance(make, str) else make))
    match = infer(dict(network.state_dict()))
    assert match is not None
    assert (match.arch, match.options) == (arch, options)
    with torch.device("meta"):
        again = build(match.arch, num_classes=1000, options=match.options).state_dict()
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in match.state.items()}


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16_bn"])
def test_heads_that_robustness_keeps_apart(name):
    from torchvision.models import get_model

    with torch.device("meta"):
        state = get_model(name).state_dict()
    renamed = {n.replace("classifier.6.", "last_layer."): t for n, t in state.items()}
    match = infer(renamed)
    assert match is not None
    assert match.arch == f"torchvision:{name}"
    assert match.state.keys() == state.keys()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:swin_tiny_patch4_window7_224", {}),
        ("timm:swin_s3_tiny_224", {}),
        ("timm:swin_base_patch4_window7_224", {}),
        ("timm:swin_small_patch4_window7_224", {}),
        ("timm:beit_base_patch16_384", {}),
        ("torchvision:mnasnet0_5", {}),
        ("torchvision:squeezenet1_0", {}),
    ],
)
def test_networks_whose_names_of_tensors_are_the_same_are_told_apart_by_all_sizes(name, options):
    with torch.device("meta"):
        state = build(name, num_classes=17, options=options).state_dict()
    match = infer(dict(state))
    assert match is not None
    assert match.arch == name


def test_a_module_that_asks_for_the_version_of_its_file_loads(tmp_path):
    network = build("torchvision:mnasnet0_5", num_classes=3).eval()
    model = load(stored(network, tmp_path / "a.pt"))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dcp/__0_0.distcp": b"x", "dcp/.metadata": b"y"}, "distributed checkpoint .* dcp_to_torch"),
        ({"ds/zero_to_fp32.py": b"", "ds/latest": b"global_step1"}, "DeepSpeed checkpoint; gather it"),
        ({"orbax/manifest.ocdbt": b"", "orbax/_METADATA": b""}, "Orbax checkpoint of JAX"),
        ({"saved/saved_model.pb": b"\x08\x01"}, "SavedModel of TensorFlow; export it to ONNX"),
        ({"tf/model.ckpt.index": b"", "tf/checkpoint": b""}, "a checkpoint of TensorFlow"),
        ({"flax/flax_model.msgpack": b"\x80", "flax/config.json": b"{}"}, "a Flax checkpoint of JAX"),
        ({"accelerate/random_states_0.pkl": b""}, "a checkpoint of accelerate; give the file of weights"),
        ({"model.h5": b"\x89HDF\r\n\x1a\n" + bytes(64)}, "a Keras model; export it to ONNX"),
        ({"model.pt": b"\x89HDF\r\n\x1a\n" + bytes(64)}, "a Keras model"),
        ({"a.gguf": b"GGUF" + bytes(64)}, "a GGUF file"),
        ({"a.tflite": b"\x1c\0\0\0TFL3" + bytes(64)}, "a TensorFlow Lite model"),
        ({"params.msgpack": b"\x81\xa1a\x01"}, "a Flax checkpoint of JAX"),
        ({"__0_0.distcp": b"PK\x03\x04" + bytes(64)}, "broken|one part of a distributed checkpoint"),
        ({"w.npy": b"\x93NUMPY\x01\x00" + bytes(64)}, "one array of numpy"),
    ],
)
def test_files_of_other_frameworks_are_named_by_their_kind(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first = next(iter(files))
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / first.split("/")[0])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_called_like_a_published_model_is_only_what_its_bytes_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("madrylab-cifar10-l2-0.5", "robustbench-l2-Rice2020Overfitting", "salman2020-resnet50-l2-3"):
        stored(build("preact_resnet10_w8", num_classes=4), tmp_path / name)
        description = load(name).description
        assert (description.arch, description.threat_model) == ("preact_resnet10_w8", None)
        assert "published" not in description.recipe["source"]


# Judges.


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("x.pt", {}),
        ("x.pt,normalize=cifar10", {"normalize": "cifar10"}),
        ("a,b.pt,normalize=0.5,0.25,image_size=64", {"normalize": "0.5,0.25", "image_size": 64}),
        ("x.pt,class_names=a,b,c,ema=true", {"class_names": "a,b,c", "ema": True}),
    ],
)
def test_flags_after_the_name_of_a_judge(text, flags):
    assert split_flags(text) == ("a,b.pt" if text.startswith("a,b") else "x.pt", CheckpointFlags(**flags))


@pytest.mark.parametrize("text", ["x.pt,image_size=none", "x.pt,image_size=0", "x.pt,ema=perhaps"])
def test_flags_that_do_not_fit_are_one_line(text):
    with pytest.raises(UserError, match=f"^{text}: (image_size|ema): ") as caught:
        split_flags(text)
    assert "\n" not in str(caught.value)


def test_a_judge_is_given_its_normaliser(tmp_path, capsys):
    _printed.clear()
    file = stored(build("resnet10_w8", num_classes=4), tmp_path / "judge.pt")
    assumed, given = (open_features(f"classifier:{file}{text}") for text in ("", ",normalize=imagenet"))
    first, second = capsys.readouterr().err.splitlines()
    assert "normaliser" in first
    assert "normaliser" not in second
    assert (assumed.source.name, assumed.source.sha256) == (str(file), given.source.sha256)
    assert (assumed.protocol, given.protocol) == ("pixels/255", "pixels/255,normalize=imagenet")
    x_u8 = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(given(x_u8), load(file, normalize="imagenet").features(x_u8 / 255))
    assert not torch.allclose(assumed(x_u8), given(x_u8))


@pytest.mark.skipif(not SHARED.is_dir(), reason="other people's checkpoints are not here")
@pytest.mark.parametrize("name", ["resnet4b.pth", "cifar_small_36px.pth"])
def test_real_files_without_a_known_architecture_are_one_line(name):
    with pytest.raises(UserError, match=r"fits no architecture known here: .* pass --arch") as caught:
        load(SHARED / name)
    assert "\n" not in str(caught.value)
