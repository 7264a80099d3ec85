"""ONNX operators that move values and make shapes: reshape, slice, gather and the like. Operator sets 9 and later."""

import math

import torch
from torch import Tensor

from robust_models.checkpoints.programs.onnx.node import Node, Operator, integers, registering

SHAPES: dict[str, Operator] = {}
operator = registering(SHAPES)


@operator("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    return node.get("value", torch.zeros(1)).expand(shape.tolist())


@operator("Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(node.get("to"))


@operator("CastLike")
def _cast_like(node: Node, x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype)


@operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not node.get("allowzero", 0):  # 0 copies the size
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.ndim))[::-1]))


@operator("Squeeze")
def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = integers(node, "axes", axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@operator("Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = integers(node, "axes", axes) or []
    ndim = x.ndim + len(chosen)
    for axis in sorted(axis % ndim for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(node: Node, *xs: Tensor) -> Tensor:
    return torch.cat(xs, node.get("axis"))


@operator("Split")
def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    chosen = integers(node, "split", sizes) or math.ceil(x.shape[axis] / len(node.outputs))
    return x.split(chosen, axis)


@operator("Slice")
def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = integers(node, "starts", starts) or [], integers(node, "ends", ends) or []
    chosen = integers(node, "axes", axes) or list(range(len(first)))
    strides = [1] * len(first) if steps is None else steps.tolist()
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        indices = range(x.shape[axis])[start:end:step]
        if step == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(indices, dtype=torch.int64, device=x.device))
    return x


@operator("Gather")
def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    positions = (indices % x.shape[axis]).flatten().to(x.device)
    return x.index_select(axis, positions).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherND")
def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise NotImplementedError("GatherND with batch dimensions")
    return x[tuple(indices.to(x.device).unbind(-1))]


@operator("ScatterND")
def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if node.get("reduction", "none") != "none":
        raise NotImplementedError("ScatterND with a reduction")
    return x.index_put(tuple(indices.to(x.device).unbind(-1)), updates)


@operator("Expand")
def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


@operator("Tile")
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


@operator("Where")
def _where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("Range")
def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
