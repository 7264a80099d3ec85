"""AutoAttack (standard) of every embedded classifier, for their cards: resumable, the cheapest first.

    python -m benchmarks.autoattack --data TEST.npz --out runs/autoattack [--ckpt NAME ...] [--norm l2] [--eps 0.5]

One file of progress for each classifier lies in --out: the same command goes on where it was stopped, and does nothing
again that is done. A row is printed as soon as its classifier is through: robust accuracy with the 95 % interval of
Clopper and Pearson (1934), what each member left, and the wall time of the attack.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from eval.robust.config import RobustConfig
from eval.robust.run import run_robust
from robust_models import embedded_names, load
from robust_models.runtime.version import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ckpt", nargs="+", default=embedded_names())
    parser.add_argument("--norm", default="l2")
    parser.add_argument("--eps", default="0.5")
    parser.add_argument("--batch-size", type=int, default=50)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        "| classifier | N | clean, % | AutoAttack, % | 95 % | after each member, % | wall time |\n" + "|---" * 7 + "|"
    )
    found = {}
    for name in sorted(args.ckpt, key=size):
        config = RobustConfig(
            ckpt=name,
            data=args.data,
            norm=args.norm,
            eps=args.eps,
            attack="autoattack",
            batch_size=args.batch_size,
            state=args.out / f"{name}_{args.norm}_{args.eps.replace('/', 'o')}.state",
        )
        found[name] = run_robust(config)
        print(row(name, found[name]), flush=True)
    print(json.dumps({"classifiers": found, "environment": environment()}))


def size(name: str) -> int:
    """Parameters of the network."""
    return sum(parameter.numel() for parameter in load(name).parameters())


def row(name: str, found: dict[str, Any]) -> str:
    """Of the table, in Markdown."""
    n, result = found["n"], found["results"][0]
    interval = binomtest(round(n * result["robust_accuracy"]), n).proportion_ci(method="exact")
    left = ", ".join(f"{member} {100 * share:.2f}" for member, share in result["after_each"].items())
    return (
        f"| {name} | {n} | {100 * found['clean_accuracy']:.2f} | {100 * result['robust_accuracy']:.2f} | "
        f"{100 * interval.low:.2f} to {100 * interval.high:.2f} | {left} | {result['wall_s']:.0f} s |"
    )


if __name__ == "__main__":
    main()
