"""Program files: nothing runs without trust; with it, the original's logits and gradients at the input."""

import contextlib
import functools
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import refine
from robust_models import PGD, Normalizer, RobustClassifier, UserError, load
from robust_models.checkpoints.programs import Program, kind_of, load_program
from robust_models.runtime.device import place
from tests.tiny import tiny_classifier

SIZE = 16
KINDS = ("traced", "scripted", "frozen", "exported", "exported_any")


def network() -> nn.Module:
    """Random weights, always the same, whose batch norms have seen something; a normaliser inside."""
    torch.manual_seed(1)
    model = nn.Sequential(Shifted(), tiny_classifier().network)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.25


def plain() -> nn.Module:
    """Smaller, for tests of what lies around the network."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 3)]
    return nn.Sequential(*layers).eval()


def quiet(function: Callable, *args, **kwargs):
    """TorchScript and the older ONNX exporter are deprecated, and say so in many words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def write(model: nn.Module, how: str, path: Path, x: Tensor | None = None) -> Path:
    """The model as a program file of that kind; x: the example it is traced or exported with."""
    x = torch.rand(2, 3, SIZE, SIZE) if x is None else x
    if how in ("traced", "scripted", "frozen"):
        module = quiet(torch.jit.trace, model, x) if how == "traced" else quiet(torch.jit.script, model)
        quiet(torch.jit.save, quiet(torch.jit.freeze, module) if how == "frozen" else module, str(path))
    elif how == "onnx":
        pytest.importorskip("onnx")
        axes = {"x": {0: "n"}}
        quiet(torch.onnx.export, model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    else:
        dynamic = ({0: torch.export.Dim("n", min=2, max=64)},) if how == "exported_any" else None
        with path.open("wb") as file:
            torch.export.save(torch.export.export(model, (x,), dynamic_shapes=dynamic), file)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], Path]:
    """plain() as a program file of any kind, each written once."""
    folder = tmp_path_factory.mktemp("programs")
    return functools.cache(lambda how: write(plain(), how, folder / f"{how}.pth"))


def trusted(path: Path, **kwargs) -> RobustClassifier:
    kind = kind_of(path)
    assert kind is not None
    return load_program(path, kind, **{"trust": True, "normalizer": None, "class_names": None, **kwargs})


def refusal(model: nn.Module, how: str, path: Path, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        trusted(write(model, how, path), **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"ckpt: {path} is a")
    return message


@pytest.mark.parametrize("how", [*KINDS, "onnx"])
def test_logits_gradients_attack_and_refinement_are_the_original_s(how, tmp_path):
    original = network()
    path = write(original, how, tmp_path / "a.bin")
    model = trusted(path, image_size=None if "export" in how else SIZE)
    kind = {"onnx": "onnx", "exported": "torch.export", "exported_any": "torch.export"}.get(how, "torchscript")
    assert model.description.arch == f"program:{kind}"
    assert (model.image_size, model.class_names, model.training) == (SIZE, ("0", "1", "2"), False)
    for n in (1, 5):
        x, y = torch.rand(n, 3, SIZE, SIZE), torch.arange(n) % 3
        torch.testing.assert_close(model(x), original(x), atol=1e-5, rtol=0)
        attack = PGD(eps=0.5, step_size=0.2, steps=3)
        torch.testing.assert_close(attack(model, x, y), attack(original, x, y), atol=1e-4, rtol=0)
        x_ref = refine.refine(model, x, y, eps=1.0, steps=3)
        assert ((x_ref - x).flatten(1).norm(dim=1) > 0.1).all()
    assert model(torch.rand(0, 3, SIZE, SIZE)).shape == (0, 3)


@pytest.mark.parametrize("how", ["scripted", "frozen", "exported", "onnx"])
def test_a_program_survives_what_is_done_to_networks(how, files):
    model = trusted(files(how), image_size=SIZE)
    x = torch.rand(3, 3, SIZE, SIZE)
    logits = model(x)
    model.train()
    assert torch.equal(model(x), logits)  # batch norms stay in inference mode
    place(model.eval().requires_grad_(False), torch.device("cpu"), "bf16")
    assert torch.equal(model(x), logits)  # a program computes in its own precision
    assert not any(p.requires_grad for p in model.network.module.parameters())
    with pytest.raises(UserError, match=r"no linear layer, so no features"):
        model.features(x)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["scripted", "exported", "exported_any", "onnx"])
def test_programs_move_to_the_gpu_and_back(how, files):
    model = trusted(files(how), image_size=SIZE)
    x = torch.rand(3, 3, SIZE, SIZE)
    logits = model(x)
    torch.testing.assert_close(model.to("cuda")(x.cuda()).cpu(), logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.to("cpu")(x), logits)


def test_a_device_that_the_program_cannot_run_on_is_one_line(files):
    model = trusted(files("frozen"), image_size=SIZE)
    with pytest.raises(UserError, match=r"^device: this program does not run on meta \(.*\); use cpu$"):
        model.to("meta")


@pytest.mark.parametrize(
    ("how", "batch"),
    [("traced", "any"), ("exported", "parts of 2 images"), ("exported_any", "parts of 2 to 64 images")],
)
def test_the_source_tells_what_calling_the_program_showed(how, batch, files):
    model = trusted(files(how), image_size=SIZE)
    source = model.description.recipe["source"]
    expected = {"trusted": True, "normalizer": "none assumed; the program may hold its own", "batch": batch}
    assert source | expected | {"image_size": "16, as given", "outputs": "logits", "dtype": "float32"} == source
    assert source["parameters"] == sum(p.numel() for p in plain().parameters())
    json.dumps(source)


def test_the_image_size_is_the_program_s_or_probed(tmp_path, files):
    stated = trusted(files("exported")).description
    assert (stated.image_size, stated.recipe["source"]["image_size"]) == (16, "16, from the program's input")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    probed = trusted(write(model, "traced", tmp_path / "a.pt")).description
    told = "32, the first of 32 and 224 that it takes; the program does not state it"
    assert (probed.image_size, probed.recipe["source"]["image_size"]) == (32, told)


def test_a_wide_stem_is_probed_at_imagenet_s_size_first(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    assert trusted(write(model.eval(), "traced", tmp_path / "a.pt")).image_size == 224


def test_normaliser_and_class_names_are_taken_and_checked(files):
    original, path = plain(), files("exported")
    model = trusted(path, normalizer=Normalizer((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), class_names=["a", "b", "c"])
    x = torch.rand(2, 3, SIZE, SIZE)
    shifted = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    torch.testing.assert_close(model(x), original(shifted), atol=1e-5, rtol=0)
    assert model.class_names == ("a", "b", "c")
    assert model.description.recipe["source"]["normalizer"] == "as given"
    with pytest.raises(UserError, match=r"^class_names: 2 given, but .* gives logits for 3 classes$"):
        trusted(path, class_names=["a", "b"])


def test_ten_classes_of_32_pixels_are_cifar_10(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 10))
    path = write(model.eval(), "traced", tmp_path / "a.pt", torch.rand(1, 3, 32, 32))
    assert trusted(path).class_names[0] == "airplane"


class FixedBatch(nn.Module):
    """A `view` that holds the batch of the example, as careless tracing leaves it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.conv, self.head = n, nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).contiguous().view(self.n, -1))


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("how", ["traced", "exported"])
def test_a_program_for_a_fixed_batch_takes_any(n, how, tmp_path):
    original = FixedBatch(n).eval()
    path = write(original, how, tmp_path / "a.bin", torch.rand(n, 3, SIZE, SIZE))
    model = trusted(path, image_size=SIZE)
    assert model.description.recipe["source"]["batch"] == f"parts of {n} images"
    x = torch.rand(6, 3, SIZE, SIZE, requires_grad=True)
    original.n = 6
    torch.testing.assert_close(model(x), original(x), atol=1e-5, rtol=0)
    (a,), (b,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (model, original))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["scripted", "exported"])
def test_half_precision_programs_get_what_they_were_made_for(how, tmp_path):
    original = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 3)).bfloat16().eval()
    path = write(original, how, tmp_path / "a.bin", torch.rand(2, 3, SIZE, SIZE).bfloat16())
    model = trusted(path, image_size=SIZE)
    x = torch.rand(2, 3, SIZE, SIZE)
    assert model(x).dtype == torch.float32
    torch.testing.assert_close(model(x), original(x.bfloat16()).float(), atol=1e-2, rtol=0)


class Then(nn.Module):
    """A small network with something done before or behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        channels = 1 if kind == "grey" else 3
        self.conv, self.head = nn.Conv2d(channels, 8, 3), nn.Linear(8 * 14 * 14, 1 if kind == "single" else 3)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)

    def forward(self, x: Tensor):
        if self.kind == "bytes":
            x = (x * 255).to(torch.uint8).float()
        if self.kind == "rounded":
            x = (x * 255).round() / 255
        h = torch.relu(self.norm(self.conv(x)))
        h = self.drop(h) if self.kind == "dropout" else h
        logits = self.head(h.flatten(1))
        if self.kind == "softmax":
            return logits.softmax(1)
        if self.kind == "tuple":
            return (logits,)
        if self.kind == "pair":
            return logits, h
        if self.kind == "map":
            return h
        return logits * float("inf") if self.kind == "infinite" else logits


@pytest.mark.parametrize("how", ["traced", "exported"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rounded", "its gradient at random pixels is zero; refining follows gradients"),
        ("bytes", "it has no gradient at its input"),
        ("pair", "TypeError: the output is a tuple of 2, not one tensor"),
        ("map", "3 images give an output of shape [3, 8, 14, 14]"),
        ("single", "3 images give an output of shape [3, 1]"),
        ("infinite", "its output on random pixels is not finite; does it need a normaliser?"),
    ],
)
def test_what_is_no_classifier_with_gradients_is_refused(how, kind, message, tmp_path):
    assert message in refusal(Then(kind).eval(), how, tmp_path / "a.bin", image_size=SIZE)


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_programs_made_in_training_mode_are_refused(how, tmp_path):
    message = refusal(plain().train(), how, tmp_path / "a.bin", image_size=SIZE)
    assert "running it changes its own tensors (first " in message
    assert message.endswith("it was made in training mode, make it again after model.eval()")
    dropout = Then("dropout").eval()
    dropout.drop.train()
    assert "change with the other images of its batch, or from run to run" in refusal(
        dropout, how, tmp_path / "b.bin", image_size=SIZE
    )


def test_a_scripted_module_saved_in_training_mode_is_put_into_eval_mode(tmp_path):
    original = plain()
    model = trusted(write(original.train(), "scripted", tmp_path / "a.pt"), image_size=SIZE)
    x = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(model(x), original.eval()(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_probabilities_become_logits_with_that_softmax(how, tmp_path):
    original = Then("softmax").eval()
    model = trusted(write(original, how, tmp_path / "a.bin"), image_size=SIZE)
    x = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(model(x).softmax(1), original(x), atol=1e-5, rtol=0)
    assert model.description.recipe["source"]["outputs"] == "probabilities, taken by their logarithm"


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_an_output_alone_in_a_tuple_is_taken(how, tmp_path):
    assert trusted(write(Then("tuple").eval(), how, tmp_path / "a.bin"), image_size=SIZE).description.num_classes == 3


def test_inputs_that_are_no_rgb_images_are_refused(tmp_path, files):
    grey = write(Then("grey").eval(), "exported", tmp_path / "a.pt2", torch.rand(2, 1, SIZE, SIZE))
    with pytest.raises(UserError, match=r"but its input has 1 channels; only RGB images are refined$"):
        trusted(grey)
    grey = write(Then("grey").eval(), "traced", tmp_path / "a.pt", torch.rand(2, 1, SIZE, SIZE))
    with pytest.raises(UserError, match=r"does not turn images \[N,3,H,W\] into logits.*expected.*1 channels"):
        trusted(grey)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 30, 3)).eval()
    wide = write(model, "exported", tmp_path / "b.pt2", torch.rand(2, 3, SIZE, 32))
    with pytest.raises(UserError, match=r"but its input is 16x32 pixels; only square images are refined$"):
        trusted(wide)
    square = files("exported")
    with pytest.raises(UserError, match=r"but its input is 16x16 pixels, not 32x32 as given$"):
        trusted(square, image_size=32)


def test_optimised_for_inference_modules_without_gradients_are_refused(tmp_path):
    with torch.no_grad():
        module = quiet(torch.jit.optimize_for_inference, quiet(torch.jit.script, network()))
    quiet(torch.jit.save, module, str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match=r"gradient|cannot be opened|does not turn images"):
        trusted(tmp_path / "a.pt", image_size=SIZE)


# Without trust


class Writes(nn.Module):
    """Writes a file as soon as it is loaded: TorchScript calls __setstate__ then."""

    def __init__(self, canary: str) -> None:
        super().__init__()
        self.canary = canary
        self.weight = nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self):
        return (self.canary, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.canary = state[0]
        self.training = state[1]
        self.weight = torch.from_file(state[0], shared=True, size=4, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torchscript_that_writes(path: Path, canary: Path, files: Callable[[str], Path]) -> None:
    quiet(torch.jit.save, quiet(torch.jit.script, Writes(str(canary))), str(path))


def export_that_writes(path: Path, canary: Path, files: Callable[[str], Path]) -> None:
    """A sound archive whose first weight is replaced by a pickle, which torch.export.load reads without restriction."""
    with zipfile.ZipFile(files("exported")) as archive:
        entries = {info.filename: archive.read(info) for info in archive.filelist}
    config = next(name for name in entries if name.endswith("model_weights_config.json"))
    weights = json.loads(entries[config])
    first = next(iter(weights["config"].values()))
    first["use_pickle"] = True
    entries[config] = json.dumps(weights).encode()
    weight = next(name for name in entries if name.endswith(f"weights/{first['path_name']}"))
    torch.save(Canary(canary), path)
    entries[weight] = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("craft", "kind"), [(torchscript_that_writes, "torchscript"), (export_that_writes, "torch.export")]
)
def test_without_trust_no_code_of_the_file_runs(craft, kind, tmp_path, files):
    path, canary = tmp_path / "a.pt2", tmp_path / "canary"
    craft(path, canary, files)
    if canary.exists():  # TorchScript's saving runs it too
        canary.unlink()
    assert kind_of(path) == kind
    with pytest.raises(UserError, match=r"run.? with your rights.*pass --trust \(in Python: trust=True\)"):
        load_program(path, kind, trust=False, normalizer=None, class_names=None)
    with pytest.raises(UserError, match="--trust"):
        load(path)
    assert not canary.exists()
    with contextlib.suppress(UserError):
        trusted(path)
    assert canary.exists()  # with trust it does


@pytest.mark.parametrize("how", ["traced", "exported", "onnx"])
def test_load_finds_programs_by_what_they_hold_and_asks_for_trust(how, files):
    path = files(how)
    with pytest.raises(UserError, match=r"^ckpt: .*\.pth is an? \S+ program, not only tensors: .* --trust") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    if "export" in how or how == "onnx":  # TorchScript does not state its image size, and no other than 16 fits
        assert load(path, trust=True, normalize="none").description.num_classes == 3
    with pytest.raises(UserError, match="arch: does not apply"):
        load(path, trust=True, arch="resnet50")


@pytest.mark.parametrize("how", ["traced", "exported", "onnx"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_files_cut_short_are_no_programs_and_get_one_line(how, keep, tmp_path, files):
    content = files(how).read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(len(content) * keep)])
    assert kind_of(path) is None
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_a_damaged_program_that_is_trusted_gets_one_line(how, capfd, tmp_path, files):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(files(how)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.filelist}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content[: len(content) // 2] if name.endswith((".json", ".pkl")) else content)
    with pytest.raises(UserError, match=r"program that cannot be opened \(\w+: ") as caught:
        trusted(path)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())


def ordinary_files(folder: Path) -> list[Path]:
    from PIL import Image
    from safetensors.torch import save_file

    model = network()
    torch.save(model.state_dict(), folder / "state.pt")
    torch.save(model, folder / "whole_module.pt")
    torch.save(model.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), folder / "a.safetensors")
    np.savez(folder / "a.npz", constants=np.zeros(3), code=np.zeros(3))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    (folder / "page.pt").write_text("<!doctype html><html>404</html>")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "plain.pkl").write_bytes(pickle.dumps({"constants.pkl": "code/"}))
    (folder / "text.txt").write_text('"a" (b) 2:3\n')
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("notes/code.py", "code/")
    import tarfile

    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(folder / "state.pt", "constants.pkl")
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_ordinary_files_are_no_programs(tmp_path):
    for path in ordinary_files(tmp_path):
        assert kind_of(path) is None, path.name
    assert kind_of(tmp_path) is None


@settings(max_examples=50)
@given(
    content=st.binary(max_size=300),
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x08\x07\x12", b"\x08\x07:", b"\x80\x02"]),
)
def test_any_bytes_are_looked_at_without_failing(content, start, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(start + content + (b"PK\x05\x06" + content[:18].ljust(18, b"\xff") if start[:2] == b"PK" else b""))
    assert kind_of(path) in (None, "onnx")


def test_huge_declared_sizes_cost_nothing(tmp_path):
    path = tmp_path / "a.pt"
    locator = b"PK\x06\x07" + b"\0" * 4 + (4).to_bytes(8, "little") + b"\0" * 4
    record = b"PK\x06\x06" + b"\0" * 36 + b"\xff" * 7 + b"\x7f" + (0).to_bytes(8, "little")
    path.write_bytes(b"PK\x03\x04" + record + locator + b"PK\x05\x06" + b"\xff" * 18)
    assert kind_of(path) is None
    path.write_bytes(b"\x08\x07\x3a" + b"\xff" * 9 + b"\x7f" + b"a")
    assert kind_of(path) is None
    path.write_bytes(b"\x08\x07" * 500_000)
    assert kind_of(path) is None


def test_saving_a_program_can_be_told_from_saving_tensors(files):
    model = trusted(files("traced"), image_size=SIZE)
    assert isinstance(model.network, Program)
    assert not model.network.state_dict()
