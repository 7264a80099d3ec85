"""ONNX operators that are layers: convolution, pooling, normalisation, padding. Operator sets 9 and later."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.checkpoints.programs.onnx.node import Node, Operator, integers, registering

LAYERS: dict[str, Operator] = {}
operator = registering(LAYERS)


def _window(node: Node, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after each spatial axis."""
    axes = len(kernel)
    strides, dilations = node.get("strides", [1] * axes), node.get("dilations", [1] * axes)
    pads = node.get("pads", [0] * 2 * axes)
    before, after = pads[:axes], pads[axes:]
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        total = [
            max(0, (math.ceil(n / s) - 1) * s + span - n)
            for n, s, span in zip(x.shape[2:], strides, spans, strict=True)
        ]
        small, large = [n // 2 for n in total], [n - n // 2 for n in total]
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    return strides, dilations, before, after


def _padded(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    pairs = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, pairs, value=value) if any(pairs) else x


@operator("Conv")
def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, before, after = _window(node, x, list(weight.shape[2:]))
    if before != after:
        x, before = _padded(x, before, after), [0] * len(before)
    zeros = [0] * len(strides)
    return torch.convolution(x, weight, bias, strides, before, dilations, False, zeros, node.get("group", 1))


@operator("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides, dilations, before, after = _window(node, x, kernel)
    if before != after:
        x, before = _padded(x, before, after, -math.inf), [0] * len(before)
    return F.max_pool2d(x, kernel, strides, before, dilations, bool(node.get("ceil_mode", 0)))


@operator("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides, dilations, before, after = _window(node, x, kernel)
    if before != after or any(d != 1 for d in dilations):
        raise NotImplementedError("AveragePool with uneven padding or dilation")
    count = bool(node.get("count_include_pad", 0))
    return F.avg_pool2d(x, kernel, strides, before, bool(node.get("ceil_mode", 0)), count)


@operator("GlobalAveragePool")
def _global_average_pool(node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(node: Node, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("BatchNormalization")
def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    training = bool(node.get("training_mode", 0))
    statistics = (None, None) if training else (mean, var)
    return F.batch_norm(x, *statistics, scale, bias, training, eps=node.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if len(scale) == groups != x.shape[1]:  # one per group until operator set 20
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + node.get("epsilon", 1e-5)).rsqrt()
    return normal * scale if bias is None else normal * scale + bias


@operator("Dropout")
def _dropout(node: Node, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    if training is not None and bool(training):
        raise NotImplementedError("Dropout in training mode")
    return x


@operator("Pad")
def _pad(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    amounts: list[int] = integers(node, "pads", pads) or []
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = amounts[i], amounts[i + len(chosen)]
    fill: Any = node.get("value", 0.0) if value is None else value.item()
    mode = node.get("mode", "constant")
    if mode == "constant":
        return _padded(x, before, after, fill)
    if any(before[:2] + after[:2]):
        raise NotImplementedError(f"Pad with mode {mode} outside height and width")
    pairs = [before[3], after[3], before[2], after[2]]
    return F.pad(x, pairs, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])
