"""A frozen copy of a classifier with its batch norms folded into the convolutions before them.

In eval mode a batch norm is an affine map per channel: convolution and norm are one convolution with other weights.
The copy computes the same function up to rounding, and reads and writes every activation once less in each direction.
"""

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from robust_models.classifier import RobustClassifier


def folded(classifier: RobustClassifier) -> RobustClassifier:
    """A copy for inference and input gradients: eval mode, parameters that require no gradient, not to be trained.

    The network is traced (torch.fx); one that cannot be, as its path depends on the data, comes back as a plain copy.
    """
    copied = copy.deepcopy(classifier).eval().requires_grad_(False)
    try:
        copied.network = _fold(fx.symbolic_trace(copied.network))
    except (TraceError, TypeError, RuntimeError, AttributeError, NotImplementedError):
        pass
    return copied


def _fold(network: fx.GraphModule) -> fx.GraphModule:
    modules = dict(network.named_modules())
    uses = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or not isinstance(modules[before.target], nn.Conv2d) or len(before.users) > 1:
            continue
        if uses[before.target] > 1 or modules[node.target].running_var is None:
            continue
        absorb(modules[before.target], modules[node.target])
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


@torch.no_grad()
def absorb(conv: nn.Module, norm: nn.Module) -> None:
    """Makes conv compute norm(conv(x)), norm in eval mode. In float64: the only rounding is that of the new weights."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var = _wide(norm.running_mean, 0.0, norm), _wide(norm.running_var, 1.0, norm)
    scale = _wide(norm.weight, 1.0, norm) / (var + norm.eps).sqrt()
    shift = _wide(norm.bias, 0.0, norm) + (_wide(conv.bias, 0.0, norm) - mean) * scale
    dtype = conv.weight.dtype
    conv.weight.copy_((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(dtype))
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)


def _wide(values: Tensor | None, missing: float, norm: nn.BatchNorm2d) -> Tensor:
    if values is None:
        return torch.full((norm.num_features,), missing, dtype=torch.float64)
    return values.double()
