"""The ONNX translation against the standard's own reference evaluator, and the files that it must not read."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robust_models import RobustClassifier, UserError
from robust_models.checkpoints.programs import kind_of, load_program
from robust_models.checkpoints.programs.onnx.graph import open_onnx

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

SHAPE = (2, 3, 7, 6)
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def model_of(nodes: list, constants: dict[str, np.ndarray], *, opset: int, shape=SHAPE, rank: int = 4, domains=()):
    """nodes from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", opset), *domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


# operator, what follows x, attributes, operator set
CASES = [
    *[(op, [], {}, 18) for op in "Abs Neg Exp Sigmoid Tanh Erf Relu Softplus Softsign Floor Ceil Round Sign".split()],
    *[(op, [], {}, 18) for op in "Sin Cos Identity HardSwish Mish Dropout Transpose Flatten Reciprocal".split()],
    *[(op, [floats(3, 1, 1)], {}, 14) for op in "Add Sub Mul Div Max Min Sum Mean".split()],
    ("Pow", [np.float32(2)], {}, 15),
    ("Mod", [floats(3, 1, 1)], {"fmod": 1}, 13),
    ("LeakyRelu", [], {"alpha": 0.3}, 16),
    ("PRelu", [floats(3, 1, 1)], {}, 16),
    ("Elu", [], {"alpha": 0.7}, 18),
    ("Selu", [], {}, 18),
    ("Gelu", [], {"approximate": "tanh"}, 20),
    ("HardSigmoid", [], {"alpha": 0.3}, 18),
    ("Clip", [np.float32(-0.5), np.float32(0.5)], {}, 13),
    ("Clip", [None, np.float32(0.5)], {}, 13),
    ("Clip", [], {"min": -0.2, "max": 0.1}, 10),
    ("Softmax", [], {"axis": 1}, 13),
    ("LogSoftmax", [], {}, 13),
    ("MatMul", [floats(6, 5)], {}, 13),
    ("Conv", [floats(4, 3, 3, 3), floats(4)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 11),
    ("Conv", [floats(4, 3, 3, 2)], {"pads": [1, 0, 2, 1], "dilations": [2, 1]}, 22),
    ("Conv", [floats(3, 1, 3, 3)], {"auto_pad": "SAME_UPPER", "group": 3, "strides": [2, 2]}, 11),
    ("Conv", [floats(3, 1, 2, 2)], {"auto_pad": "SAME_LOWER", "group": 3}, 11),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 12),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, 12),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 12),
    ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 19),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 11),
    ("GlobalAveragePool", [], {}, 22),
    ("GlobalMaxPool", [], {}, 22),
    ("BatchNormalization", [floats(3), floats(3), floats(3), np.ones(3, np.float32) * 2], {"epsilon": 1e-3}, 15),
    ("InstanceNormalization", [floats(3), floats(3)], {}, 18),
    ("GroupNormalization", [floats(3), floats(3)], {"num_groups": 3}, 21),
    ("LayerNormalization", [floats(7, 6), floats(7, 6)], {"axis": 2}, 17),
    *[(f"Reduce{op}", [], {"axes": [2, 3], "keepdims": 0}, 11) for op in "Mean Max Min L1 L2 LogSumExp".split()],
    ("ReduceMean", [ints(2, -1)], {}, 18),
    ("ReduceSum", [ints(1)], {"keepdims": 0}, 13),
    ("ReduceSum", [], {"noop_with_empty_axes": 1}, 13),
    ("ReduceMean", [], {"keepdims": 0}, 18),
    ("Reshape", [ints(0, -1)], {}, 19),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}, 21),
    ("Flatten", [], {"axis": 2}, 13),
    ("Unsqueeze", [ints(1, -1)], {}, 13),
    ("Unsqueeze", [], {"axes": [0]}, 11),
    ("Concat", [floats(2, 1, 7, 6)], {"axis": 1}, 13),
    ("Slice", [ints(-3, 1), ints(2**62, 5), ints(2, 3)], {}, 13),
    ("Slice", [ints(6), ints(-100), ints(2), ints(-2)], {}, 13),
    ("Slice", [], {"starts": [1], "ends": [3], "axes": [3]}, 9),
    ("Gather", [ints(0, -1)], {"axis": 1}, 13),
    ("Gather", [np.int64(1)], {"axis": 2}, 13),
    ("GatherND", [ints(1, 2, 0, 0).reshape(2, 2)], {}, 13),
    ("ScatterND", [ints(1).reshape(1, 1), floats(1, 3, 7, 6)], {}, 16),
    ("Expand", [ints(4, 1, 1, 1, 1)], {}, 13),
    ("Tile", [ints(1, 2, 1, 2)], {}, 13),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}, 13),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}, 13),
    ("Pad", [ints(1, 2), np.float32(0), ints(-1)], {"mode": "constant"}, 18),
    ("Pad", [], {"pads": [0, 0, 1, 1, 0, 0, 0, 0], "value": 2.0}, 10),
    ("CastLike", [np.float64(0)], {}, 15),
    ("Cast", [], {"to": TensorProto.DOUBLE}, 13),
]


def ids(case: tuple) -> str:
    return f"{case[0]}-{case[3]}"


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_each_operator_is_the_reference_evaluator_s(case, tmp_path):
    op, rest, attributes, opset = case
    names = ["" if value is None else f"c{i}" for i, value in enumerate(rest)]
    constants = {name: np.asarray(value) for name, value in zip(names, rest, strict=True) if name}
    model = model_of([helper.make_node(op, ["x", *names], ["y"], **attributes)], constants, opset=opset)
    assert_like_reference(model, tmp_path)


def assert_like_reference(model, folder: Path) -> None:
    onnx.save(model, folder / "a.onnx")
    assert kind_of(folder / "a.onnx") == "onnx"
    x = floats(*SHAPE)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    with torch.no_grad():
        result = open_onnx(folder / "a.onnx").module(torch.from_numpy(x))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-5, rtol=1e-4)


def test_softmax_before_operator_set_13_counts_all_later_axes_as_one(tmp_path):
    onnx.save(model_of([helper.make_node("Softmax", ["x"], ["y"], axis=2)], {}, opset=11), tmp_path / "a.onnx")
    x = torch.from_numpy(floats(*SHAPE))
    result = open_onnx(tmp_path / "a.onnx").module(x)  # the reference evaluator knows the later rule only
    torch.testing.assert_close(result, x.flatten(2).softmax(2).view(SHAPE))


def test_shapes_that_the_graph_computes_follow_the_batch(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(ints(0))),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["n", "rest"], ["sizes"], axis=0),
        helper.make_node("Split", ["x"], ["left", "right"], axis=3),
        helper.make_node("Where", ["mask", "left", "right"], ["chosen"]),
        helper.make_node("Reshape", ["chosen", "sizes"], ["y"]),
    ]
    mask = np.array([True, False, True]).reshape(3, 1, 1)
    assert_like_reference(model_of(nodes, {"mask": mask}, opset=13, rank=2), tmp_path)


def classifier(weights: np.ndarray | None = None, *, batch: int | str = "n", final: str = "Gemm", domain: str = ""):
    """Pooled pixels through one matrix to 4 classes."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node(final, ["flat", "w"], ["y"], domain=domain),
    ]
    constants = {"w": floats(3, 4) if weights is None else weights}
    domains = [(domain, 1)] if domain else []
    return model_of(nodes, constants, opset=17, shape=(batch, 3, 8, 8), rank=2, domains=domains)


def trusted(path: Path) -> RobustClassifier:
    return load_program(path, "onnx", trust=True, normalizer=None, class_names=None)


def pooled(x: Tensor, weights: np.ndarray) -> Tensor:
    return x.mean((2, 3)) @ torch.from_numpy(weights)


@pytest.mark.parametrize("batch", ["n", 1, 8])
def test_a_stated_batch_is_only_the_example_s_where_any_works(batch, tmp_path):
    weights = floats(3, 4)
    onnx.save(classifier(weights, batch=batch), tmp_path / "a.onnx")
    model = trusted(tmp_path / "a.onnx")
    assert (model.image_size, model.description.recipe["source"]["batch"]) == (8, "any")
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(model(x), pooled(x, weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("operators", [("NotThere", ""), ("Gemm", "com.example")])
def test_operators_without_a_translation_are_named(operators, tmp_path):
    final, domain = operators
    onnx.save(classifier(final=final, domain=domain), tmp_path / "a.onnx")
    name = f"{domain}.{final}".lstrip(".")
    with pytest.raises(UserError, match=rf"cannot be opened \(NotImplementedError: its operators {name} are not trans"):
        trusted(tmp_path / "a.onnx")


def test_functions_of_the_file_are_put_in_their_place(tmp_path):
    weights = floats(3, 4)
    model = classifier(weights, final="Head", domain="local")
    body = [helper.make_node("Gemm", ["a", "b"], ["c"])]
    model.functions.append(
        helper.make_function("local", "Head", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    )
    onnx.save(model, tmp_path / "a.onnx")
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(trusted(tmp_path / "a.onnx")(x), pooled(x, weights), atol=1e-5, rtol=0)


def with_weights_at(location: str, path: Path) -> None:
    model = classifier(np.zeros((3, 4), np.float32))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_weights_in_a_file_beside_are_read(tmp_path):
    weights = floats(3, 4)
    (tmp_path / "weights.bin").write_bytes(weights.tobytes())
    with_weights_at("weights.bin", tmp_path / "a.onnx")
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(trusted(tmp_path / "a.onnx")(x), pooled(x, weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_weights_anywhere_else_are_refused(kind, tmp_path):
    (tmp_path / "secret").write_bytes(floats(3, 4).tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    locations = {"above": "../secret", "absolute": str(tmp_path / "secret"), "link": "link"}
    with_weights_at(locations[kind], folder / "a.onnx")
    with pytest.raises(UserError, match=r"its weights are said to lie in '.*(secret|link)', outside its own folder\)$"):
        trusted(folder / "a.onnx")


def test_weights_that_are_missing_are_one_line(tmp_path):
    with_weights_at("weights.bin", tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"is an ONNX program that cannot be opened \(.*weights\.bin") as caught:
        trusted(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    onnx.save(classifier(), tmp_path / "a.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs the package onnx; pip install "bigroc\[onnx\]"$'):
        trusted(tmp_path / "a.onnx")


def test_inputs_that_are_no_batch_of_images_are_refused(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(model_of([node], {}, opset=13, shape=(2, 3), rank=2), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"its input has 2 dimensions, not 4 \(\[N,C,H,W\]\)"):
        trusted(tmp_path / "a.onnx")
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(UserError, match="it has 2 inputs and 1 outputs, not one of each"):
        trusted(tmp_path / "b.onnx")
