"""Where a training step's time goes, and how much of the machine's peak it reaches.

    python -m benchmarks.train_profile [--config cifar_l2_small.yaml] [--steps 5] [--rounds 3] [--FIELD VALUE ...]

Shares are those of torch's profiler, of the processor's own time in each kind of operation. The peak is what one large
matrix product reaches here in the same precision and with as many threads; the step's rate counts the multiplications
and additions of its convolutions and linear layers, the attack's included. Random weights and
images: speed depends on neither. The attack is that of the run's start.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.train_step import Way, ours
from robust_models.runtime.command import OneLineParser, add_config_flags
from robust_models.runtime.config import read_recipe, resolve
from robust_models.runtime.device import decide_precision
from robust_models.runtime.version import environment
from train.config import TrainConfig
from train.start import make_model

CPU = torch.device("cpu")
KINDS = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "activation": ("silu", "relu", "clamp_min", "threshold"),
    "SGD": ("sgd", "Optimizer"),
}
SIDE = 2048  # of the matrices whose product is the peak


class Counted(TorchDispatchMode):
    """Adds up the operations of convolutions and matrix products; FlopCounterMode does not bear autograd.grad."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--config", default="cifar_l2_small.yaml")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    add_config_flags(parser, TrainConfig, skip=("out", "device", "compile"))
    flags = vars(parser.parse_args())
    del flags["debug"]
    name, steps, rounds = (flags.pop(key) for key in ("config", "steps", "rounds"))
    config = resolve(TrainConfig, read_recipe(name) | {"out": Path("unused"), "device": "cpu", "compile": False}, flags)
    step, precision = make_step(config), decide_precision(config.precision, CPU, "training").precision
    with Counted() as counted:
        step()
    flops = counted.flops
    peak = max(rate(product(precision), 2 * SIDE**3) for _ in range(rounds))
    own = [rate(step, flops, steps) for _ in range(rounds)]
    found = {
        "arch": config.arch,
        "batch_size": config.batch_size,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "images_per_s": max(own) / flops * config.batch_size,
        "gflop_a_step": flops / 1e9,
        "gflops_a_s": max(own) / 1e9,
        "peak_gflops_a_s": peak / 1e9,
        "of_peak": max(own) / peak,
        "shares": shares(step, steps),
    }
    for key, value in found.items():
        print(f"{key:16} {value:.4g}" if isinstance(value, float) else f"{key:16} {value}")
    print(json.dumps(found | {"environment": environment()}))


def make_step(config: TrainConfig) -> Way:
    """One optimizer step of the recipe, on random images."""
    model = make_model(config, tuple(map(str, range(10))), 32)
    x_u8 = torch.randint(0, 256, (config.batch_size, 3, 32, 32), dtype=torch.uint8)
    return ours(model, x_u8, torch.randint(0, 10, (config.batch_size,)), config)


def product(precision: str) -> Way:
    """One product of square matrices in the precision of a convolution."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE).to(kind) for _ in range(2))
    return lambda: torch.mm(a, b)


def rate(way: Way, flops: float, times: int = 5) -> float:
    """Operations per second over so many times, after one that warms up."""
    way()
    start = time.perf_counter()
    for _ in range(times):
        way()
    return times * flops / (time.perf_counter() - start)


def shares(step: Way, steps: int) -> dict[str, float]:
    """Of the processor's time in each of KINDS, and in all else."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
    found: dict[str, Any] = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "other")
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {kind: round(spent / total, 3) for kind, spent in found.items()}


if __name__ == "__main__":
    main()
