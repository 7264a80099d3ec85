"""Counterfactuals of the embedded classifier in several balls: how close they are, and what another classifier sees.

    python -m benchmarks.counterfactuals [--num-images 64] [--confidence .9 .5] [--ckpt cifar10-l2-small]
        [--judge cifar10-ablation-l2-050] [--guided cifar10-standard-small] [--figure docs/counterfactuals.png]

The first bundled test images, each towards the class that the classifier thinks next most probable. "Smallest" rows:
the smallest ball in which the class is said with the confidence. Rows of a ball: that of their median radius, for all
images. Validity is the share that the judge, which took no part, sees as the target; intervals are exact (Clopper and
Pearson). Closeness is compared with L2 projection steps image by image: the mean of the differences over the images
for which both are valid, and its 95 % bootstrap interval over those. --guided, instead: a classifier that is not
robust, by its own gradient and by that of --ckpt within some angles of it. One line of JSON at the end.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from refine.network import Network
from refine.synthesis.changes import LENGTHS
from refine.synthesis.smallest_change import Search, closest
from robust_models import load, open_images, to_float
from robust_models.folding import folded
from robust_models.grids import difference_row, save_rows
from robust_models.runtime.files import PRETRAINED
from robust_models.runtime.version import environment
from robust_models.threat import NORMS

WAYS = (
    ("l2", "projection"),
    ("l2", "frank-wolfe"),
    ("l1.5", "projection"),
    ("l1.5", "frank-wolfe"),
    ("l1", "frank-wolfe"),
)
BASELINE = WAYS[0]
ANGLES = (None, 30.0, 60.0, 90.0)  # None: no guide
RESAMPLES = 10_000
SHOWN = ("l2", "l1.5", "l1")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PRETRAINED / "cifar10-test-500.npz")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--confidence", nargs="+", type=float, default=[0.9, 0.5])
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--judge", default="cifar10-ablation-l2-050")
    parser.add_argument("--guided", default=None)
    parser.add_argument("--steps", type=int, default=Search.steps)
    parser.add_argument("--figure", type=Path, default=None, help="only draw some images, no figures")
    args = parser.parse_args()
    images = open_images(args.data)
    x_u8 = images.read(0, min(args.num_images, len(images)))
    network, judge = (Network(folded(load(name))) for name in (args.ckpt, args.judge))
    if args.figure:
        return draw(args.figure, network, x_u8, args)
    titles = ("confidence", "steps", "valid", "judge", *LENGTHS[:3], "L1.5 less that of L2 steps", "s")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    if args.guided:
        rows = guided(Network(folded(load(args.guided))), network, judge, x_u8, args)
    else:
        rows = measured(network, judge, x_u8, args)
    print(
        json.dumps(
            {"rows": rows, "arguments": {k: str(v) for k, v in vars(args).items()}, "environment": environment()}
        )
    )


def measured(network: Network, judge: Network, x_u8: Tensor, args: argparse.Namespace) -> list[Row]:
    """The smallest changes and the balls of their median radii, in every way."""
    rows: list[Row] = []
    for sure in args.confidence:
        smallest: dict[tuple[str, str], Row] = {}
        for norm, method in WAYS:
            row = found(network, judge, x_u8, Search(norm, None, method, args.steps, confidence=sure))  # type: ignore[arg-type]
            smallest[norm, method] = row
            told(f"{sure:g} | {norm} {method}, smallest", row, smallest[BASELINE])
        for (norm, method), row in list(smallest.items()):
            ball = float(np.median(row["lengths"][norm]))
            in_ball = found(network, judge, x_u8, Search(norm, ball, method, args.steps, confidence=sure))  # type: ignore[arg-type]
            told(f"{sure:g} | {norm} {method}, eps {ball:.3g}", in_ball, None)
            rows += [row | {"confidence": sure}, in_ball | {"confidence": sure, "eps": ball}]
    return rows


def guided(explained: Network, guide: Network, judge: Network, x_u8: Tensor, args: argparse.Namespace) -> list[Row]:
    """The smallest changes of a classifier that is not robust."""
    rows: list[Row] = []
    for angle in ANGLES:
        search = Search("l1.5", None, "frank-wolfe", args.steps, confidence=args.confidence[0])
        more = {} if angle is None else {"guide": guide, "angle": angle}
        row = found(explained, judge, x_u8, search, **more)
        told(
            f"{args.confidence[0]:g} | {args.guided}, {'own gradient' if angle is None else f'{angle:g} degrees'}",
            row,
            None,
        )
        rows.append(row | {"explained": args.guided, "angle": angle})
    return rows


def found(network: Network, judge: Network, x_u8: Tensor, search: Search, **more: Any) -> Row:
    """What a search gives, image by image."""
    x = to_float(x_u8)
    with torch.no_grad():
        y = network(x).topk(2).indices[:, 1]
    started = time.process_time()
    result = closest(network, x, y, search, **more)
    cpu_s = time.process_time() - started
    x_new = to_float(result.x_u8)
    with torch.no_grad():
        seen = judge(x_new).argmax(1) == y
    lengths = {name: NORMS[name].length(x_new - x).tolist() for name in LENGTHS}
    changed = (result.x_u8 != x_u8).any(1).flatten(1).float().mean(1).tolist()
    return {
        "norm": search.norm, "method": search.method, "valid": result.is_valid.tolist(), "judge": seen.tolist(),
        "lengths": lengths, "changed": changed, "cpu_s": round(cpu_s, 1),
    }  # fmt: skip


def told(name: str, row: Row, baseline: Row | None) -> None:
    """A line of the table. Closeness is of the valid ones."""
    valid, seen = np.array(row["valid"]), np.array(row["judge"])
    low, high = binomtest(int(seen.sum()), len(seen)).proportion_ci()
    medians = [
        f"{np.median(np.array(row['lengths'][norm])[valid]):.3g}" if valid.any() else "-" for norm in LENGTHS[:3]
    ]
    print(
        f"| {name} | {valid.mean():.1%} | {seen.mean():.1%} ({low:.1%} to {high:.1%}) | {' | '.join(medians)} | "
        f"{'' if baseline is None or baseline is row else compared(row, baseline)} | {row['cpu_s']} |",
        flush=True,
    )


def compared(row: Row, baseline: Row) -> str:
    """The mean difference of closeness in L1.5, with its paired interval."""
    both = np.array(row["valid"]) & np.array(baseline["valid"])
    gap = (np.array(row["lengths"]["l1.5"]) - np.array(baseline["lengths"]["l1.5"]))[both]
    draws = gap[np.random.default_rng(0).integers(0, len(gap), (RESAMPLES, len(gap)))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f}), {len(gap)} images, {(gap < 0).mean():.0%} closer"


def draw(path: Path, network: Network, x_u8: Tensor, args: argparse.Namespace) -> None:
    """Some images, their counterfactuals in three balls, and what changed."""
    x = to_float(x_u8)
    with torch.no_grad():
        logits = network(x)
    y, names = logits.topk(2).indices[:, 1], network.class_names
    rows = [("image", x_u8)]
    for norm in SHOWN:
        made = closest(network, x, y, Search(norm, steps=args.steps, confidence=args.confidence[0])).x_u8  # type: ignore[arg-type]
        name, change = difference_row(x_u8, made)
        rows += [(norm, made), (name, change)]
    said = logits.argmax(1).tolist()
    captions = [f"{names[a]}\n> {names[b]}" for a, b in itertools.zip_longest(said, y.tolist())]
    note = (
        f"The smallest changes with which {args.ckpt} says the lower class with confidence {args.confidence[0]:g}, in "
        "L2, L1.5 and L1, by Frank-Wolfe steps; below each what changed, around grey."
    )
    save_rows(path, rows, captions, note=note, columns=len(x_u8))


if __name__ == "__main__":
    main()
