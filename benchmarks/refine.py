"""Images/s of refinement: ours against the plain loop, same images, eps and steps, alternating in one run.

    python -m benchmarks.refine --network resnet50 [--device cuda] [--num-images 128] [--repeats 3] [--no-compile]
    python -m benchmarks.refine --network cifar10-l2-small

The plain loop is what the paper's notebooks do: float32, NCHW, loss.backward() through all parameters. A network is an
embedded classifier, a checkpoint file, or an architecture of ours with fresh weights, whose speed is that of trained
ones. The results are compared after one step and after all. With fresh weights they need not be equal: gradients agree
to 1e-6 until rounding flips a ReLU, and the direction of steepest descent turns by some degrees within 0.001 of the
image, as it does not for a robust network, so that small differences grow from step to step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine import refine
from robust_models import NORMALIZERS, Description, RobustClassifier, embedded_names, load, open_images, to_float
from robust_models.folding import folded
from robust_models.runtime.device import bf16_hardware, pick_device, place
from robust_models.runtime.version import environment

Run = Callable[[Tensor, Tensor, int], Tensor]  # x, y, steps -> x_ref
SAMPLES = Path(__file__).parents[1] / "robust_models" / "pretrained" / "vae-cifar10.npz"


def plain_loop(model: RobustClassifier, x: Tensor, y: Tensor, *, eps: float, step_size: float, steps: int) -> Tensor:
    x_ref = x
    for _ in range(steps):
        x_ref = x_ref.detach().requires_grad_()
        F.cross_entropy(_logits_nchw(model, x_ref), y, reduction="sum").backward()
        assert x_ref.grad is not None
        gradient = x_ref.grad
        delta = x_ref.detach() - step_size * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
        x_ref = x + delta * (eps / delta.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
    return x_ref.detach().clamp(0, 1)


def _logits_nchw(model: RobustClassifier, x: Tensor) -> Tensor:
    return model.network((x - model.mean) / model.std)


def make_network(name: str) -> RobustClassifier:
    if name in embedded_names() or Path(name).is_file():
        return load(name)
    torch.manual_seed(0)
    classes = tuple(str(i) for i in range(10))
    return RobustClassifier.from_description(Description(name, classes, 32, normalizer=NORMALIZERS["cifar10"])).eval()


def variants(name: str, device: torch.device, eps: float, step_size: float, compiled: bool) -> dict[str, Run]:
    plain = make_network(name).to(device)
    models: dict[str, nn.Module] = {
        "fp32": place(make_network(name), device, "fp32"),
        "folded": place(folded(make_network(name)), device, "fp32"),
    }
    if bf16_hardware(device) != "none":
        models["folded bf16"] = place(folded(make_network(name)), device, "bf16")
    if compiled:
        for key in [key for key in models if key.startswith("folded")]:
            models[f"{key} compiled"] = cast(nn.Module, torch.compile(models[key]))
    runs: dict[str, Run] = {
        "plain": lambda x, y, steps: plain_loop(plain, x, y, eps=eps, step_size=step_size, steps=steps)
    }
    for key, model in models.items():
        runs[key] = lambda x, y, steps, model=model: refine(model, x, y, eps=eps, step_size=step_size, steps=steps)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-l2-small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eps", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    device = pick_device(args.device)
    images = to_float(open_images(SAMPLES).read(0, 256))
    x = images[torch.arange(args.num_images) % len(images)].to(device)
    y = torch.arange(args.num_images, device=device) % 10
    batches = list(zip(x.split(args.batch_size), y.split(args.batch_size), strict=True))
    runs = variants(args.network, device, args.eps, 1.5 * args.eps / args.steps, args.compile)

    seconds_of_first_batch = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run(*batches[0], 1)
        seconds_of_first_batch[name] = time.perf_counter() - start
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            rates[name].append(args.num_images / _seconds(run, batches, args.steps, device))
    differences = {
        name: [_difference(run, runs["plain"], x[:32], y[:32], steps) for steps in (1, args.steps)]
        for name, run in runs.items()
    }
    for name, values in rates.items():
        paired = statistics.median(ours / theirs for ours, theirs in zip(values, rates["plain"], strict=True))
        one, last = differences[name]
        print(
            f"{name:20} {statistics.median(values):8.1f} images/s  {paired:5.2f}x plain  max difference after a step "
            f"{one:.0e}, after {args.steps} {last:.0e}"
        )
    print(
        json.dumps(
            {
                "max_difference_after_one_and_all_steps": differences,
                "seconds_of_first_batch": seconds_of_first_batch,
                **vars(args),
                "rates": rates,
                "environment": environment(),
            }
        )
    )


def _seconds(run: Run, batches: list[tuple[Tensor, Tensor]], steps: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for x, y in batches:
        run(x, y, steps)
    _wait(device)
    return time.perf_counter() - start


def _difference(run: Run, plain: Run, x: Tensor, y: Tensor, steps: int) -> float:
    return (run(x, y, steps) - plain(x, y, steps)).abs().max().item()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
