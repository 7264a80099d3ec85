"""Two classifiers against each other: what refining along strong less weak gains over the strong one alone.

    python -m benchmarks.against --data TEST.npz [--spaces efficientnet-lite0-128 inception-768] [--weights FILE]
        [--strong cifar10-l2-small] [--weak NAME ...] [--against-weight .25 .5 1] [--eps 1 3]

Kernel distance (KID's kernel, unbiased, x 1000) of the bundled samples to TEST in spaces that took no part, refined by
the logit towards the classes that they were asked for. A cell is the distance by the strong classifier alone at this
eps, and the change from it; its 95 % interval resamples the images, both alike (paired). One line of JSON at the end.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.refiners import BATCH, PRETRAINED, SETS, compared
from refine import refine
from robust_models import load, load_dataset, open_images, to_float, to_u8
from robust_models.features import open_features
from robust_models.metrics.kernel_resampled import KernelReference, KernelResampler
from robust_models.runtime.version import environment

AXIS = ("cifar10-ablation-standard", "cifar10-ablation-l2-025", "cifar10-ablation-l2-050", "cifar10-ablation-l2-100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(PRETRAINED / "cifar10-test-500.npz"))
    parser.add_argument("--strong", default="cifar10-l2-small")
    parser.add_argument("--weak", nargs="+", default=AXIS)
    parser.add_argument("--against-weight", nargs="+", type=float, default=[0.25, 0.5, 1.0])
    parser.add_argument("--images", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--eps", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--spaces", nargs="+", default=["efficientnet-lite0-128"])
    parser.add_argument("--weights", type=Path, default=None, help="of the Inception network")
    args = parser.parse_args()
    real, strong = load_dataset(args.data, "test").x_u8, load(args.strong)
    weak = {name: load(name) for name in args.weak}
    networks = {s: open_features(s, weights=args.weights if s.startswith("inception") else None) for s in args.spaces}
    references = {name: KernelReference(features(network, real)) for name, network in networks.items()}
    rows = []
    print(f"| images | eps | against | weight | {' | '.join(args.spaces)} |\n{'|---' * (4 + len(networks))}|")
    for label in args.images:
        images = open_images(SETS[label])
        x_u8, y = images.read(0, len(images)), torch.from_numpy(np.asarray(images.labels))
        for eps in args.eps:
            alone = refined(strong, x_u8, y, eps)
            before = {n: KernelResampler(features(net, alone), references[n]) for n, net in networks.items()}
            for name, weight in ((name, weight) for name in weak for weight in args.against_weight):
                made = refined(strong, x_u8, y, eps, weak[name], weight)
                cells = []
                for space, network in networks.items():
                    distance, fall, (low, high) = compared(
                        before[space], KernelResampler(features(network, made), references[space])
                    )
                    rows.append([label, eps, name, weight, space, distance, -fall, -high, -low])
                    cells.append(f"{distance:.4g} {-fall:+.3g} ({-high:.3g} to {-low:.3g})")
                print(f"| {label} | {eps:g} | `{name}` | {weight:g} | {' | '.join(cells)} |", flush=True)
    print(json.dumps({"rows": rows, "strong": args.strong, "environment": environment()}))


def features(network, x_u8: Tensor) -> Tensor:
    return torch.cat([network(part) for part in x_u8.split(BATCH)])


def refined(
    strong: nn.Module, x_u8: Tensor, y: Tensor, eps: float, weak: nn.Module | None = None, weight: float = 0.5
) -> Tensor:
    """As a file would hold them."""
    parts: Sequence[tuple[Tensor, Tensor]] = list(zip(x_u8.split(BATCH), y.split(BATCH), strict=True))
    settings = {"eps": eps, "loss": "logit", "against": weak, "against_weight": weight}
    return torch.cat([to_u8(refine(strong, to_float(x), target, **settings)) for x, target in parts])


if __name__ == "__main__":
    main()
