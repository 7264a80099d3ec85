"""Images/s of PGD evaluation: ours against torchattacks' PGDL2, same images, eps, steps and step size, alternating.

    python -m benchmarks.eval_robust [--ckpt cifar10-l2-small] [--data cifar10] [--num-images 256] [--repeats 3]

Both get every image once, in the same batches, so that a stronger attack is not rewarded with fewer images to attack.
torchattacks has the same network in float32 and torch's default memory layout, as its users have. Without --data the
images are the bundled samples and the labels the classifier's guesses. Robust accuracy is printed beside the speed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from eval import SeededPGD
from robust_models import PGD, RobustClassifier, load, load_dataset, open_images, to_float
from robust_models.attacks import frozen_eval
from robust_models.runtime.device import exact_fp32, pick_device, place
from robust_models.runtime.version import environment

SAMPLES = Path(__file__).parent.parent / "robust_models" / "pretrained" / "vae-cifar10.npz"

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, y, index) -> x_adv


class Usual(nn.Module):
    """Normaliser and network as most people write them: NCHW throughout."""

    def __init__(self, classifier: RobustClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.network((x - self.classifier.mean) / self.classifier.std)


def attacks(args: argparse.Namespace, device: torch.device) -> dict[str, tuple[nn.Module, Attack]]:
    """Each attack with the model it runs on."""
    import torchattacks

    step_size = 2.5 * args.eps / args.steps
    plain = Usual(load(args.ckpt)).to(device)
    theirs = torchattacks.PGDL2(plain, eps=args.eps, alpha=step_size, steps=args.steps, random_start=True)
    found: dict[str, tuple[nn.Module, Attack]] = {"torchattacks": (plain, lambda x, y, _: theirs(x, y))}
    attack = PGD(args.eps, step_size, args.steps, random_start=True)
    for precision in args.precision:
        model = place(load(args.ckpt), device, precision)
        for name, early_stop in ((f"ours {precision}", True), (f"ours {precision}, last point", False)):
            ours = SeededPGD(attack, early_stop=early_stop)
            found[name] = (model, lambda x, y, index, model=model, ours=ours: ours(model, x, y, index))
    return found


def images(args: argparse.Namespace, model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """x [N,3,H,W] in [0,1] and y [N] on the device."""
    if args.data:
        data = load_dataset(args.data, "test")[: args.num_images]
        return to_float(data.x_u8).to(device), data.y.to(device)
    samples = to_float(open_images(SAMPLES).read(0, min(args.num_images, 256))).to(device)
    with torch.no_grad():
        y = model(samples).argmax(1)
    again = torch.arange(args.num_images, device=device) % len(samples)
    return samples[again], y[again]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--data", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--eps", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    args = parser.parse_args()

    device = pick_device(args.device)
    variants = attacks(args, device)
    x, y = images(args, variants["torchattacks"][0], device)
    index = torch.arange(len(x))
    batches = list(zip(x.split(args.batch_size), y.split(args.batch_size), index.split(args.batch_size), strict=True))
    rates: dict[str, list[float]] = {name: [] for name in variants}
    robust: dict[str, float] = {}
    with exact_fp32():
        for model, attack in variants.values():
            with frozen_eval(model):
                attack(x[:8], y[:8], index[:8])  # warm-up
        for _ in range(args.repeats):
            for name, (model, attack) in variants.items():
                with frozen_eval(model):
                    start = time.perf_counter()
                    x_adv = [attack(*batch) for batch in batches]
                    _wait(device)
                    rates[name].append(len(x) / (time.perf_counter() - start))
                    robust[name] = _accuracy(model, torch.cat(x_adv), y, args.batch_size)
    for name, values in rates.items():
        paired = statistics.median(a / b for a, b in zip(values, rates["torchattacks"], strict=True))
        print(
            f"{name:22} {statistics.median(values):8.1f} images/s  {paired:5.2f}x torchattacks  "
            f"robust accuracy {100 * robust[name]:.2f} % (N = {len(x)})"
        )
    print(json.dumps({**vars(args), "rates": rates, "robust_accuracy": robust, "environment": environment()}))


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    right = [
        model(part).argmax(1) == label for part, label in zip(x.split(batch_size), y.split(batch_size), strict=True)
    ]
    return float(torch.cat(right).float().mean())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
