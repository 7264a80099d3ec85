"""Everything that has a peer, measured beside it on this machine: one command, one table.

    python -m benchmarks.all [--quick] [--bf16 auto|off] [--only fid,pgd,train,refine] [--weights INCEPTION.pth]

    fid     the whole FID of two sets, against pytorch-fid and torch-fidelity     benchmarks.eval quality
    pgd     PGD-20 evaluation, against torchattacks                               benchmarks.eval_robust
    train   a PGD-7 training step, against plain, advertorch and torchattacks     benchmarks.train_step
    refine  a refinement of 7 steps, against the plain loop                       benchmarks.refine

Each part is a process of its own, one after the other, and takes turns between the ways; what is given is medians, and
ratios of ours to the peer in the same round. `--bf16 off` keeps ours to float32, as on a CPU that does not multiply
bf16: that shows what precision does there, and nothing else of such a machine. A part whose peer is not installed says
so. `--quick` is for trying the command: its sizes are too small for figures.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_models.runtime.device import bf16_hardware, pick_device
from robust_models.runtime.version import environment

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """A line of the table: rates of the same work, and how often ours is the peer's."""

    what: str
    ours: str
    peer: str
    ratio: float


@dataclass(frozen=True)
class Part:
    """A benchmark of this folder, its sizes, and how its last line reads as rows."""

    module: str
    full: tuple[str, ...]
    quick: tuple[str, ...]
    rows: Callable[[dict[str, Any], bool], list[Row]]


def fid_rows(found: dict[str, Any], bf16: bool) -> list[Row]:
    seconds = {name: way["s"] for name, way in found["quality"].items()}
    what = f"FID, 2 x {found['num_images'][0]} images"
    return [
        Row(what + note, f"{seconds[ours]:.1f} s", f"{peer}: {seconds[peer]:.1f} s", seconds[peer] / seconds[ours])
        for ours, peer, note in (("ours", "pytorch-fid", ""), ("ours, tf", "torch-fidelity", ", protocol tf"))
    ]


def pgd_rows(found: dict[str, Any], bf16: bool) -> list[Row]:
    what = f"PGD-{found['steps']}, {found['num_images']} images"
    rates = found["rates"]
    return [
        rate_row(what, rates, "ours fp32", "torchattacks"),
        rate_row(f"{what}, last point only", rates, "ours fp32, last point", "torchattacks"),
    ]


def train_rows(found: dict[str, Any], bf16: bool) -> list[Row]:
    what = f"PGD-7 training step, {found['arch']}, batch {found['batch_size']}"
    return [rate_row(what, found["rates"], "ours", peer) for peer in found["rates"] if peer != "ours"]


def refine_rows(found: dict[str, Any], bf16: bool) -> list[Row]:
    own = "folded bf16" if bf16 and "folded bf16" in found["rates"] else "folded"
    return [rate_row(f"refinement, 7 steps, {found['network']}", found["rates"], own, "plain")]


def rate_row(what: str, rates: dict[str, list[float]], ours: str, peer: str) -> Row:
    """Of images per second, in rounds."""
    ratio = statistics.median(a / b for a, b in zip(rates[ours], rates[peer], strict=True))
    return Row(
        what, f"{statistics.median(rates[ours]):.1f} images/s", f"{peer}: {statistics.median(rates[peer]):.1f}", ratio
    )


PARTS = {
    "fid": Part("eval", ("quality", "--num-images", "700"), ("quality", "--num-images", "20"), fid_rows),
    "pgd": Part("eval_robust", (), ("--num-images", "32", "--repeats", "1"), pgd_rows),
    "train": Part(
        "train_step",
        ("--arch", "preact_resnet10_w32"),
        ("--arch", "preact_resnet10_w16", "--batch-size", "16", "--rounds", "1"),
        train_rows,
    ),
    "refine": Part("refine", ("--no-compile",), ("--no-compile", "--num-images", "32", "--repeats", "1"), refine_rows),
}


def words(name: str, part: Part, args: argparse.Namespace) -> list[str]:
    """The part's command line."""
    given = [*(part.quick if args.quick else part.full)]
    if name == "fid" and args.weights:
        given += ["--weights", str(args.weights)]
    if name == "train":
        peers = ["plain"]
        if importlib.util.find_spec("advertorch"):
            peers += ["advertorch", "advertorch_frozen"]
        if importlib.util.find_spec("torchattacks"):
            peers += ["torchattacks"]
        given += ["--ways", ",".join(["ours", *peers]), *(["--precision", "fp32"] if args.bf16 == "off" else [])]
    return [sys.executable, "-m", f"benchmarks.{part.module}", *given]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bf16", choices=("auto", "off"), default="auto")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--weights", type=Path, help="of the Inception network (default: random ones)")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    bf16 = args.bf16 == "auto" and bf16_hardware(pick_device("auto")) != "none"
    print(f"load before: {load:.1f}; ours in {'bf16 where it pays' if bf16 else 'float32'}\n")
    print("| what | ours | peer | ratio |\n|---|---|---|---|", flush=True)
    kept: dict[str, Any] = {}
    for name in args.only.split(","):
        done = subprocess.run(words(name, PARTS[name], args), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"| {name} | not measured: {done.stderr.strip().splitlines()[-1]} | | |", flush=True)
            continue
        kept[name] = json.loads(done.stdout.strip().splitlines()[-1])
        for row in PARTS[name].rows(kept[name], bf16):
            print(f"| {row.what} | {row.ours} | {row.peer} | {row.ratio:.2f}x |", flush=True)
    print("\n" + json.dumps({"parts": kept, "load": load, "quick": args.quick, "environment": environment()}))


if __name__ == "__main__":
    main()
