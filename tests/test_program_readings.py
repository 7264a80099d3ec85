"""Programs: images with channels last are fed so, and what a program does not state is assumed, said and tried."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_models import NORMALIZERS, UserError, load
from robust_models.inspection_by_accuracy import choose_by_accuracy
from robust_models.runtime.distributed import _printed

SIZE = 32


class Net(nn.Module):
    """A small classifier of normalised pixels [N,3,H,W]; channels_last: [N,H,W,3]."""

    def __init__(self, *, channels_last: bool = False, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.channels_last = channels_last
        self.conv, self.head = nn.Conv2d(channels, 8, 5, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.channels_last else x
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def exported(network: nn.Module, path: Path, shape: tuple[int, ...]) -> Path:
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(network.eval(), (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def as_onnx(network: Net, path: Path, shape: tuple[int, ...]) -> Path:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = {name: numpy_helper.from_array(t.detach().numpy(), name) for name, t in network.named_parameters()}
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if network.channels_last else []
    nodes += [
        helper.make_node("Conv", ["t" if nodes else "x", "conv.weight", "conv.bias"], ["c"], strides=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", *shape]), ("y", ["n", 4]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(weights.values()))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


MAKERS = {"export": exported, "onnx": as_onnx}
SUFFIXES = {"export": "pt2", "onnx": "onnx"}


@pytest.mark.parametrize("size", [32, 24])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_program_of_images_with_channels_last_is_fed_so(maker, size, tmp_path):
    network = Net(channels_last=True)
    model = load(MAKERS[maker](network, tmp_path / f"a.{SUFFIXES[maker]}", (size, size, 3)), trust=True)
    assert (model.image_size, model.description.num_classes) == (size, 4)
    x = torch.rand(3, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x.permute(0, 2, 3, 1)))


def scripted(network: nn.Module, how: str, size: int) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        if how == "script":
            return torch.jit.script(network)
        traced = torch.jit.trace(network, torch.zeros(2, size, size, 3))
        return torch.jit.freeze(traced) if how == "freeze" else traced


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
@pytest.mark.parametrize(("size", "given"), [(32, None), (224, None), (48, 48)])
def test_torchscript_that_states_no_sizes_is_tried_with_channels_last(how, size, given, tmp_path):
    network = Net(channels_last=True).eval()
    scripted(network, how, size).save(str(tmp_path / "a.pt"))
    model = load(tmp_path / "a.pt", trust=True, image_size=given, quiet=True)
    assert model.description.recipe["source"]["channels"] == "last, [N,H,W,3]"
    x = torch.rand(3, 3, model.image_size, model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x.permute(0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 32, 32), "1 channels"), ((4, 32, 32), "4 channels"), ((3, 32, 24), "32x24"), ((32, 24, 3), "32x24")],
)
def test_a_program_of_other_images_is_named_as_it_is(shape, message, tmp_path):
    network = Net(channels_last=shape[2] == 3, channels=3 if 3 in (shape[0], shape[2]) else shape[0])
    with pytest.raises(UserError, match=message):
        load(exported(network, tmp_path / "a.pt2", shape), trust=True)


@pytest.mark.parametrize("maker", MAKERS)
def test_what_a_program_does_not_state_is_said_and_its_normaliser_tried(maker, tmp_path, capsys):
    _printed.clear()
    network = Net()
    file = MAKERS[maker](network, tmp_path / f"a.{SUFFIXES[maker]}", (3, SIZE, SIZE))
    model = load(file, trust=True)
    assert model.description.assumptions.keys() == {"normalize", "class_names"}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "normaliser none, or within the program (--normalize)" in said
    x_u8 = torch.randint(0, 256, (300, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, SIZE, SIZE).contiguous()
    truth = load(file, trust=True, normalize="imagenet", class_names="abcd")
    assert truth.description.assumptions == {}
    with torch.no_grad():
        y = truth(x_u8 / 255).argmax(1)
    found, (comparison,) = choose_by_accuracy(model, x_u8, y)
    assert comparison.accuracies.keys() == NORMALIZERS.keys()
    assert comparison.accuracies["imagenet"] == 1.0
    assert "imagenet" in {comparison.chosen, *comparison.ties}
    with torch.no_grad():
        assert (found(x_u8 / 255).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize("maker", MAKERS)
def test_a_program_says_where_it_computes(maker, tmp_path):
    model = load(MAKERS[maker](Net(), tmp_path / f"a.{SUFFIXES[maker]}", (3, SIZE, SIZE)), trust=True)
    assert list(model.parameters()) == []
    assert model.device == torch.device("cpu")
    with pytest.raises(UserError, match="no linear layer, so no features"):
        _ = model.head
