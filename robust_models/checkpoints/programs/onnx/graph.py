"""ONNX files: the graph as an nn.Module whose operators are PyTorch's, so that it has gradients.

Written here because the converters on PyPI (onnx2torch 1.5.15) stop at operator set 16, below what torch.onnx writes.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_models.checkpoints.programs.onnx.layers import LAYERS
from robust_models.checkpoints.programs.onnx.math import MATH
from robust_models.checkpoints.programs.onnx.node import Node
from robust_models.checkpoints.programs.onnx.shapes import SHAPES
from robust_models.checkpoints.programs.program import Opened

OPERATORS = {**MATH, **LAYERS, **SHAPES}
_STANDARD = ("", "ai.onnx")  # the same domain


class OnnxGraph(nn.Module):
    """The graph, interpreted node by node. Integers are shapes and indices: they stay on the CPU."""

    def __init__(self, image: str, output: str, nodes: list[Node], constants: dict[str, Tensor]) -> None:
        super().__init__()
        self.image, self.output, self.nodes = image, output, nodes
        self.integers = {name: value for name, value in constants.items() if not value.is_floating_point()}
        weights = {name: value for name, value in constants.items() if value.is_floating_point()}
        self.weight_names = list(weights)
        self.weights = nn.ParameterList(nn.Parameter(value, requires_grad=False) for value in weights.values())

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = dict(zip(self.weight_names, self.weights, strict=True))
        values |= {**self.integers, self.image: x}
        for node in self.nodes:
            result = OPERATORS[node.op](node, *(values[name] if name else None for name in node.inputs))
            outputs = result if isinstance(result, tuple) else (result,)
            values |= {name: value for name, value in zip(node.outputs, outputs, strict=False) if name}
            for name in node.last_used:
                del values[name]
        return values[self.output]


def open_onnx(path: Path) -> Opened:
    """The graph of an ONNX file, with weights from files beside it where it names such. Raises on what it cannot do."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(path, load_external_data=False)
    _refuse_distant_files(model, path)
    load_external_data_for_model(model, str(path.parent))
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    graph = model.graph
    _refuse_unknown_operators(graph)
    constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    constants |= {node.output[0]: _constant(node) for node in graph.node if node.op_type == "Constant"}
    images = [value for value in graph.input if value.name not in constants]
    if len(images) != 1 or len(graph.output) != 1:
        raise TypeError(f"it has {len(images)} inputs and {len(graph.output)} outputs, not one of each")
    opset = next(entry.version for entry in model.opset_import if entry.domain in _STANDARD)
    nodes = _with_last_uses(
        [_node(node, opset) for node in graph.node if node.op_type != "Constant"],
        {images[0].name, graph.output[0].name},
    )
    module = OnnxGraph(images[0].name, graph.output[0].name, nodes, constants)
    image = images[0].type.tensor_type
    batch, *size = _dimensions(image)
    # A stated batch is often only the example's: any batch is tried first.
    batches = ((1, None),) if batch is None else ((1, None), (batch, batch))
    return Opened(module, module.to, dtype=_dtype(image.elem_type), size=(size[0], size[1], size[2]), batches=batches)


def _refuse_distant_files(model: Any, path: Path) -> None:
    """Weights may lie in other files, but those must lie beside this one: a path may lead anywhere."""
    folder = path.parent.resolve()
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder):
                raise ValueError(f"its weights are said to lie in {entry.value[:100]!r}, outside its own folder")


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto anywhere in a protobuf message."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for item in value if hasattr(value, "append") else (value,):
            if descriptor.message_type.name == "TensorProto":
                yield item
            else:
                yield from _tensors(item)


def _refuse_unknown_operators(graph: Any) -> None:
    known = {*OPERATORS, "Constant"}
    unknown = {
        f"{node.domain}.{node.op_type}".lstrip(".")
        for node in graph.node
        if node.domain not in _STANDARD or node.op_type not in known
    }
    if unknown:
        names = ", ".join(sorted(unknown)[:5])
        raise NotImplementedError(f"its operators {names} are not translated; use torch.export on the original")


def _node(node: Any, opset: int) -> Node:
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    if node.op_type == "Cast":
        attributes["to"] = _dtype(attributes["to"])
    return Node(node.op_type, tuple(node.input), tuple(node.output), attributes, opset)


def _constant(node: Any) -> Tensor:
    value = _attribute(node.attribute[0])
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _attribute(attribute: Any) -> Any:
    from onnx.helper import get_attribute_value

    value = get_attribute_value(attribute)
    if attribute.type == attribute.TENSOR:
        return _tensor(value)
    if attribute.type == attribute.STRING:
        return value.decode()
    return list(value) if attribute.type in (attribute.INTS, attribute.FLOATS) else value


def _tensor(tensor: Any) -> Tensor:
    from onnx.numpy_helper import to_array

    return torch.from_numpy(to_array(tensor).copy())


def _dtype(elem_type: int) -> torch.dtype:
    import numpy as np
    from onnx.helper import tensor_dtype_to_np_dtype

    return torch.from_numpy(np.empty(0, tensor_dtype_to_np_dtype(elem_type))).dtype


def _dimensions(image: Any) -> list[int | None]:
    """[N,C,H,W] of an input's type; None for what the file leaves open."""
    dimensions = [
        d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in image.shape.dim
    ]
    if len(dimensions) != 4:
        raise TypeError(f"its input has {len(dimensions)} dimensions, not 4 ([N,C,H,W])")
    return dimensions


def _with_last_uses(nodes: list[Node], keep: set[str]) -> list[Node]:
    """The same nodes, each knowing which values can be dropped behind it, so that no activation outlives its use."""
    result: list[Node] = []
    needed = set(keep)
    for node in reversed(nodes):
        produced = {name for name in (*node.inputs, *node.outputs) if name}
        result.append(replace(node, last_used=tuple(produced - needed)))
        needed |= produced
    return result[::-1]
