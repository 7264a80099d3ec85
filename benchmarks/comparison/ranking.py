"""BIGRoC and the methods that need a discriminator, ranked on one GAN at equal passes.

    python -m benchmarks.comparison.ranking --run runs/cgan-pd --data TRAIN.npz --test TEST.npz --out runs/ranking
        [--ckpt cifar10-l2-small] [--num-images 1000] [--eps 1 2 3] [--spaces efficientnet-lite0-128] [--weights FILE]
        [--published] [--classifier]

Cost is counted in forward passes through a network, a backward pass as two. BIGRoC's seven steps are 21; so are 21
proposals of MH-GAN and seven steps of DOT, DDLS and Discriminator Gradient flow, but each of these goes through two
networks, so that they cost twice as much; rejection sampling keeps about one image in twenty. --published: the papers'
own numbers of steps. --classifier: the robust classifier's logits in the discriminator's place. Every set is refined by
BIGRoC as well.

Distances are to --test in spaces that took no part, less that of the generator's samples, with 95 % intervals of the
bootstrap over images; sets that begin at the same noise (all but DRS and MH-GAN) pair. Sets that are there are not made
again. One line of JSON at the end.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.comparison.rivals import RivalConfig, run_rival
from benchmarks.guidance import features, words
from eval.study.report.compare import Comparison
from refine.config import RefineConfig
from refine.pipeline import refine_set
from robust_models import load_dataset, open_images
from robust_models.features import open_features
from robust_models.metrics.kernel_resampled import reference_for
from robust_models.runtime.version import environment

RAW = "none"
STEPS = 7
EQUAL: dict[str, dict[str, Any]] = {
    RAW: {},
    "drs": {"percentile": 95},
    "mh-gan": {"proposals": 3 * STEPS},
    "dot": {"steps": STEPS},
    "ddls": {"steps": STEPS},
    "dg-flow": {"steps": STEPS},
}
PUBLISHED: dict[str, dict[str, Any]] = {method: {} for method in EQUAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True, help="real images that calibrate; none of --test")
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the samples")
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--eps", nargs="+", type=float, default=[1.0, 2.0, 3.0])
    parser.add_argument("--methods", nargs="+", choices=EQUAL, default=list(EQUAL))
    parser.add_argument("--spaces", nargs="+", default=["efficientnet-lite0-128"])
    parser.add_argument("--weights", type=Path, default=None, help="of the Inception network")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--classifier", action="store_true")
    args = parser.parse_args()
    costs = {name: cost for method in args.methods for name, cost in made(method, args)}
    real = load_dataset(args.test, "test").x_u8
    compared = []
    for name in args.spaces:
        space = open_features(name, weights=args.weights if name.startswith("inception") else None)
        reference = reference_for(features(space, real), args.num_images)
        seen = ((one, features(space, read(args.out / f"{one}.npz")).numpy()) for one in costs)
        compared.append(Comparison(seen, reference))
    print(f"| method | passes | {' | '.join(args.spaces)} |\n|{'---|' * (2 + len(compared))}")
    for name in sorted(costs, key=lambda name: compared[0].distance(name).value):
        told = [f"{one.distance(name).value:.4g}: {words(one, name, RAW)}" for one in compared]
        print(f"| {name} | {costs[name]:.3g} | {' | '.join(told)} |", flush=True)
    rows = {name: [cost, *(asdict(one.difference(name, RAW)) for one in compared)] for name, cost in costs.items()}
    print(json.dumps({"rows": rows, "measure": compared[0].measure, "environment": environment()}))


def made(method: str, args: argparse.Namespace) -> list[tuple[str, float]]:
    """A method's samples and the same refined, in the folder: their names and passes."""
    settings = (PUBLISHED if args.published else EQUAL)[method]
    name, judged_by = (f"{method}-classifier", args.ckpt) if args.classifier and method != RAW else (method, None)
    kind = "-published" if args.published and method != RAW else ""
    out = args.out / f"{name}{kind}.npz"
    flags = {"run": args.run, "method": method, "out": out, "data": args.data, "num_images": args.num_images}
    found = run_rival(RivalConfig(**flags, classifier=judged_by, **settings))  # type: ignore[arg-type]
    passes = found["passes per image"]
    cost = sum((2 if network.endswith("backward") else 1) * count for network, count in passes.items())
    sets: list[tuple[str, float]] = [(out.stem, cost)]
    for eps in args.eps:
        refined = args.out / f"{out.stem}+bigroc-{eps:g}.npz"
        if not refined.exists():
            refine_set(RefineConfig(ckpt=args.ckpt, input=out, out=refined, eps=eps, steps=STEPS))
        sets.append((refined.stem, cost + 3 * STEPS))
    return sets


def read(path: Path):
    images = open_images(path)
    return images.read(0, len(images))


if __name__ == "__main__":
    main()
