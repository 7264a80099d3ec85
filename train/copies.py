"""Other forms of the classifier that training keeps: its moving average, a folded twin, and the compiled network."""

import copy
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.folding import folded
from train.config import TrainConfig

WORTH_COMPILING = 1000  # steps of a run on a GPU, where compiling takes about a minute; chosen, not measured
Found = TypeVar("Found")
Network = TypeVar("Network", bound=nn.Module)


class EMA(Generic[Network]):
    """Exponential moving average of parameters and buffers: `ema.model` trails the model it was made from.

    With decay 0 it equals it after every update.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model: Network = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Network, step: int) -> None:
        """After optimizer step number `step` (from 0); early on the decay is lower, to forget the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


class FoldedTwin:
    """`model` computes what the original does in evaluation mode, with less work, once `refresh()` was called.

    Its batch norms are folded into its convolutions, as in an attack they are constants.
    `pairs` names the convolutions and the norms in them; it is empty where nothing could be folded.
    """

    def __init__(self, original: RobustClassifier) -> None:
        self.original = original
        self.model = folded(original)
        self.pairs = _folded_pairs(original.network, self.model.network)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the weights and statistics of the original as they are now."""
        own, current = dict(self.model.network.named_modules()), dict(self.original.network.named_modules())
        for conv_name, norm_name in self.pairs:
            _fold_into(own[conv_name], current[conv_name], current[norm_name])
        through_folding = {f"{conv}.{name}" for conv, _ in self.pairs for name in ("weight", "bias")}
        state = self.original.network.state_dict()
        for name, value in self.model.network.state_dict().items():
            if name not in through_folding:
                value.copy_(state[name])


def make_twin(model: RobustClassifier, config: TrainConfig, device: torch.device) -> FoldedTwin | None:
    """None where the recipe, or the network, has the attack on the model itself."""
    fold = config.attack.fold
    if fold is None:
        fold = device.type == "cpu" and not config.compile  # a compiled network has its norms fused already
    if not fold or config.attack.radius == 0 or config.noised:
        return None
    twin = FoldedTwin(model)
    return twin if twin.pairs else None


def compiles(config: TrainConfig, device: torch.device, steps: int) -> bool:
    """Whether a run of so many steps is compiled; by its length where the recipe leaves it open."""
    if config.compile is not None:
        return config.compile
    return device.type == "cuda" and steps >= WORTH_COMPILING and not config.noised


class Compiled:
    """A network whose steps run compiled for as long as that works.

    The code is compiled, or read from a cache that a kill may have cut off, when a step first needs it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model, self.optimizer = model, optimizer
        self.network: nn.Module = model
        if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            _warn("no C++ compiler here (g++ or clang++)")
            return
        compiled = torch.compile(model)
        assert isinstance(compiled, nn.Module)
        self.network = compiled

    def run(self, step: Callable[[nn.Module], Found], *, alone: bool) -> Found:
        """step(network). Where that fails before the optimizer's step, and is not the user's mistake, it is undone and
        done again, as are all that follow, without compiling.

        alone: no other process takes part in the step. Others would wait for this one: UserError.
        """
        if self.network is self.model:
            return step(self.model)
        buffers = list(self.model.buffers())  # batch norms change theirs before the optimizer changes the parameters
        kept = [buffer.clone() for buffer in buffers]
        begun: list[bool] = []
        hook = self.optimizer.register_step_pre_hook(lambda *_: begun.append(True))
        try:
            return step(self.network)
        except UserError:
            raise
        except Exception as error:
            if begun:
                raise
            reason = _reason(error)
        finally:
            hook.remove()
        if not alone:
            raise UserError(f"compile: compiling failed ({reason}); leave --compile away, with another --out")
        _warn(f"compiling failed ({reason})")
        _restore(buffers, kept)
        self.network = self.model
        return step(self.model)


def _folded_pairs(network: nn.Module, twin: nn.Module) -> list[tuple[str, str]]:
    """Names of every convolution and the batch norm that it has absorbed."""
    if not isinstance(twin, fx.GraphModule):
        return []
    left = dict(twin.named_modules())
    return [
        (node.args[0].target, node.target)
        for node in fx.symbolic_trace(network).graph.nodes
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), nn.BatchNorm2d)
        if node.target not in left
    ]


def _fold_into(target: nn.Module, conv: nn.Module, norm: nn.Module) -> None:
    """target computes norm(conv(x))."""
    assert isinstance(target, nn.Conv2d)
    assert isinstance(conv, nn.Conv2d)
    assert target.bias is not None
    scale, shift = _affine(norm)
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    torch.mul(conv.weight, scale.view(-1, 1, 1, 1), out=target.weight)
    target.bias.copy_(shift)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] that a batch norm is in evaluation mode; in float64, as the mean may be large."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale.to(norm.running_mean.dtype), (shift + norm.bias if norm.affine else shift).to(norm.running_mean.dtype)


def _warn(reason: str) -> None:
    line = f"compile: {reason}; going on without compiling, which changes results by rounding only"
    tqdm.write(line, file=sys.stderr)  # a bar may be there


@torch.no_grad()
def _restore(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    while (inner := error.__cause__ or getattr(error, "inner_exception", None)) is not None:  # the latter is dynamo's
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__
