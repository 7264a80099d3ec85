"""How many steps a refinement needs: distances to real images and seconds of CPU by the number of steps.

    python -m benchmarks.few_steps --data TEST.npz [--eps 3] [--steps 1 2 3 5] [--space efficientnet-lite0-128]
        [--weights INCEPTION.pth]

Kernel distance (KID's kernel, unbiased, x 1000) of the bundled samples to TEST in a space that took no part, refined
towards the classes that they were asked for, with steps of 1.5 * eps / steps. Intervals are 95 %, of a bootstrap over
the images: of the distance itself, about the one found, and of what it exceeds that of 7 steps by, where both results
are resampled alike (paired). One line of JSON at the end.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.refiners import BATCH, PRETRAINED, RESAMPLES, SETS, compared
from refine import refine
from refine.method import STEPS
from robust_models import load, load_dataset, open_images, to_float, to_u8
from robust_models.features import open_features
from robust_models.folding import folded
from robust_models.metrics import bootstrap_counts
from robust_models.metrics.kernel_resampled import KernelReference, KernelResampler
from robust_models.runtime.version import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(PRETRAINED / "cifar10-test-500.npz"))
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--images", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--eps", nargs="+", type=float, default=[3.0])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 5])
    parser.add_argument("--space", default="efficientnet-lite0-128")
    parser.add_argument("--weights", type=Path, default=None, help="of the Inception network")
    args = parser.parse_args()
    network = open_features(args.space, weights=args.weights)
    classifier = folded(load(args.ckpt))

    def features(x_u8: Tensor) -> Tensor:
        return torch.cat([network(part) for part in x_u8.split(BATCH)])

    reference, rows = KernelReference(features(load_dataset(args.data, "test").x_u8)), []
    print(f"| images | eps | steps | distance | more than of 7 steps | s |\n{'|---' * 6}|")
    for label in args.images:
        images = open_images(SETS[label])
        x_u8, y = images.read(0, len(images)), torch.from_numpy(np.asarray(images.labels))
        raw = 1000 * KernelResampler(features(x_u8), reference).distance(np.ones(len(x_u8), dtype=np.int64))
        print(f"| {label} | 0 | | {raw:.4g} | | |", flush=True)
        for eps in args.eps:
            usual = None
            for steps in (STEPS, *args.steps):
                started = time.process_time()
                parts = zip(x_u8.split(BATCH), y.split(BATCH), strict=True)
                made = torch.cat([to_u8(refine(classifier, to_float(x), c, eps=eps, steps=steps)) for x, c in parts])
                cpu_s = time.process_time() - started
                found = KernelResampler(features(made), reference)
                usual = usual or found
                of_usual, fall, (low, high) = compared(usual, found)
                rows.append([label, eps, steps, of_usual - fall, -fall, -high, -low, cpu_s])
                more = f"{-fall:+.3g} ({-high:+.3g} to {-low:+.3g})" if steps != STEPS else ""
                distance = f"{of_usual - fall:.4g} ({' to '.join(f'{end:.4g}' for end in interval(found))})"
                print(f"| {label} | {eps:g} | {steps} | {distance} | {more} | {cpu_s:.1f} |", flush=True)
    print(json.dumps({"rows": rows, "space": args.space, "ckpt": args.ckpt, "environment": environment()}))


def interval(found: KernelResampler) -> tuple[float, float]:
    """95 % of the resampled distances, moved to lie about the one found; x 1000."""
    draws = bootstrap_counts(np.random.default_rng(0), found.n, RESAMPLES)
    distances = 1000 * np.array([found.distance(counts) for counts in draws])
    moved = distances - distances.mean() + 1000 * found.distance(np.ones(found.n, dtype=np.int64))
    low, high = np.quantile(moved, (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
