"""Everything that has a peer, measured beside it on this machine: one command, one table.

    python -m benchmarks.all [--size cpu|gpu|quick] [--bf16 auto|off] [--only fid,pgd,train,refine]
                             [--weights INCEPTION.pth] [--json FILE]

    fid     the whole FID of two sets, against pytorch-fid and torch-fidelity     benchmarks.eval quality
    pgd     PGD-20 evaluation, against torchattacks                               benchmarks.eval_robust
    train   a PGD-7 training step, against plain, advertorch and torchattacks     benchmarks.train_step
    refine  a refinement of 7 steps, against the plain loop                       benchmarks.refine

Each part is a process of its own, one after the other, and takes turns between the ways; what is given is medians, and
ratios of ours to the peer in the same round. `--bf16 off` keeps ours to float32, as on a CPU that does not multiply
bf16: that shows what precision does there, and nothing else of such a machine. A part whose peer is not installed says
so. `--size gpu` has more images and larger networks, compiled; `quick` is for trying the command, and too small for
figures. `--json` has every round of each part as soon as that is done.
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
    """A benchmark of this folder, the flags that each size runs it with, and how its last line reads as rows."""

    module: str
    sizes: dict[str, tuple[str, ...]]
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
    own = ("folded bf16 compiled", "folded bf16", "folded compiled", "folded")
    best = next(name for name in own if name in found["rates"] and (bf16 or "bf16" not in name))
    what = f"refinement, 7 steps, {found['network']}, {found['num_images']} images, {best}"
    return [rate_row(what, found["rates"], best, "plain")]


def rate_row(what: str, rates: dict[str, list[float]], ours: str, peer: str) -> Row:
    """Of images per second, in rounds."""
    ratio = statistics.median(a / b for a, b in zip(rates[ours], rates[peer], strict=True))
    return Row(
        what, f"{statistics.median(rates[ours]):.1f} images/s", f"{peer}: {statistics.median(rates[peer]):.1f}", ratio
    )


PARTS = {
    "fid": Part(
        "eval",
        {
            "cpu": ("quality --num-images 700",),
            "gpu": ("quality --num-images 10000",),
            "quick": ("quality --num-images 20",),
        },
        fid_rows,
    ),
    "pgd": Part(
        "eval_robust",
        {
            "cpu": ("",),
            "gpu": ("--num-images 10000 --batch-size 500",),
            "quick": ("--num-images 32 --repeats 1",),
        },
        pgd_rows,
    ),
    "train": Part(
        "train_step",
        {
            "cpu": ("--arch preact_resnet10_w32",),
            "gpu": tuple(
                f"--compile --steps 10 --rounds 3 --arch {arch}"
                for arch in ("resnet18", "resnet50", "wide_resnet_28_10")
            ),
            "quick": ("--arch preact_resnet10_w16 --batch-size 16 --rounds 1",),
        },
        train_rows,
    ),
    "refine": Part(
        "refine",
        {
            "cpu": ("--no-compile",),
            "gpu": (
                "--num-images 50000 --batch-size 2048",
                "--network resnet50 --num-images 50000 --batch-size 512 --repeats 1",
            ),
            "quick": ("--no-compile --num-images 32 --repeats 1",),
        },
        refine_rows,
    ),
}


def commands(name: str, args: argparse.Namespace) -> list[list[str]]:
    """The part's command lines, at the size."""
    more = []
    if name == "fid" and args.weights:
        more = ["--weights", str(args.weights)]
    if name == "train":
        peers = ["plain"]
        if importlib.util.find_spec("advertorch"):
            peers += ["advertorch", "advertorch_frozen"]
        if importlib.util.find_spec("torchattacks"):
            peers += ["torchattacks"]
        more = ["--ways", ",".join(["ours", *peers]), *(["--precision", "fp32"] if args.bf16 == "off" else [])]
    part = PARTS[name]
    return [
        [sys.executable, "-m", f"benchmarks.{part.module}", *flags.split(), *more] for flags in part.sizes[args.size]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("cpu", "gpu", "quick"), default="cpu")
    parser.add_argument("--bf16", choices=("auto", "off"), default="auto")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--weights", type=Path, help="of the Inception network (default: random ones)")
    parser.add_argument("--json", type=Path, help="a line for each part, with all its rounds, as soon as it is done")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    bf16 = args.bf16 == "auto" and bf16_hardware(pick_device("auto")) != "none"
    print(f"load before: {load:.1f}; ours in {'bf16 where it pays' if bf16 else 'float32'}\n")
    print("| what | ours | peer | ratio |\n|---|---|---|---|", flush=True)
    about = {"load": load, "size": args.size, "environment": environment()}
    for name, command in ((part, words) for part in args.only.split(",") for words in commands(part, args)):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"| {name} | not measured: {done.stderr.strip().splitlines()[-1]} | | |", flush=True)
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        for row in PARTS[name].rows(found, bf16):
            print(f"| {row.what} | {row.ours} | {row.peer} | {row.ratio:.2f}x |", flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps({"part": name, "found": found, **about}) + "\n")


if __name__ == "__main__":
    main()
