"""Images/s of refinement: ours against the plain loop, same images, eps, steps and result, alternating in one run.

    python -m benchmarks.refine --ckpt cifar10-l2-small [--device cuda] [--num-images 512] [--repeats 5]

The plain loop is what the paper's notebooks do: float32, NCHW, loss.backward() through all parameters.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from refine import refine
from robust_models import RobustClassifier, load
from robust_models.runtime.device import pick_device, place
from robust_models.runtime.run_folder import environment


def plain_loop(model: RobustClassifier, x: Tensor, y: Tensor, *, eps: float, steps: int) -> Tensor:
    step_size = 1.5 * eps / steps
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eps", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    device = pick_device(args.device)
    plain = load(args.ckpt).to(device)
    variants: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "plain": lambda x, y: plain_loop(plain, x, y, eps=args.eps, steps=args.steps)
    }
    for precision in ("fp32", "bf16"):
        model = place(load(args.ckpt), device, precision)
        for name, stepped in ((precision, model), (f"{precision} compiled", torch.compile(model))):
            variants[name] = lambda x, y, model=stepped: refine(model, x, y, eps=args.eps, steps=args.steps)

    draws = torch.Generator().manual_seed(0)
    size = plain.image_size
    x = torch.rand(args.num_images, 3, size, size, generator=draws).to(device)
    y = torch.randint(0, len(plain.class_names), (args.num_images,), generator=draws).to(device)
    batches = list(zip(x.split(args.batch_size), y.split(args.batch_size), strict=True))

    seconds_to_compile = {}
    for name, run in variants.items():
        start = time.perf_counter()
        run(*batches[0])
        seconds_to_compile[name] = time.perf_counter() - start
    difference = (variants["fp32"](*batches[0]) - variants["plain"](*batches[0])).abs().max().item()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.repeats):
        for name, run in variants.items():
            _wait(device)
            start = time.perf_counter()
            for x_part, y_part in batches:
                run(x_part, y_part)
            _wait(device)
            rates[name].append(args.num_images / (time.perf_counter() - start))
    for name, values in rates.items():
        paired = statistics.median(ours / theirs for ours, theirs in zip(values, rates["plain"], strict=True))
        print(f"{name:13} {statistics.median(values):8.1f} images/s  {paired:5.2f}x plain")
    print(
        json.dumps(
            {
                "max_difference_fp32": difference,
                "seconds_of_first_batch": seconds_to_compile,
                **vars(args),
                "rates": rates,
                "environment": environment(),
            }
        )
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
