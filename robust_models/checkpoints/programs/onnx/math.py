"""ONNX operators that compute: element by element, over axes, matrix products. Operator sets 9 and later."""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.checkpoints.programs.onnx.node import Node, Operator, integers, registering

MATH: dict[str, Operator] = {}
operator = registering(MATH)


def _plain(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *values: function(*values)


_PLAIN: dict[str, Callable[..., Tensor]] = {
    **{"Abs": torch.abs, "Neg": torch.neg, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Erf": torch.erf},
    **{"Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round},
    **{"Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid},
    **{"Relu": torch.relu, "Softplus": F.softplus, "Softsign": F.softsign, "Mish": F.mish, "HardSwish": F.hardswish},
    **{"Identity": lambda x: x, "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow},
    **{"MatMul": torch.matmul, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge},
    **{"Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or},
    **{
        "Not": torch.logical_not,
        "Sum": lambda *xs: reduce(torch.add, xs),
        "Max": lambda *xs: reduce(torch.maximum, xs),
    },
    **{"Min": lambda *xs: reduce(torch.minimum, xs), "Mean": lambda *xs: reduce(torch.add, xs) / len(xs)},
}
MATH.update({name: _plain(function) for name, function in _PLAIN.items()})


@operator("Div")
def _div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    floating = a.is_floating_point() or b.is_floating_point()
    return a / b if floating else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@operator("LeakyRelu")
def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def _elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.get("alpha", 1.0))


@operator("Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return gamma * F.elu(x, alpha)


@operator("Gelu")
def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


@operator("Swish")
def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0, 1)


@operator("Clip")
def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = node.get("min") if low is None else low.item()
    largest = node.get("max") if high is None else high.item()
    return x if least is None and largest is None else x.clamp(least, largest)


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    function = torch.softmax if node.op == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % x.ndim  # all later axes count as one
    return function(x.flatten(axis), -1).view(x.shape)


@operator("Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = node.get("alpha", 1.0) * (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    return product if c is None else product + node.get("beta", 1.0) * c


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def apply(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = integers(node, "axes", axes)
        if not chosen and node.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(chosen or range(x.ndim)), bool(node.get("keepdims", 1)))

    return apply


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}
MATH.update({name: _reduction(function) for name, function in _REDUCTIONS.items()})
