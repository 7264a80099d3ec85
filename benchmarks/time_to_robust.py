"""Seconds of training from scratch against robust accuracy: the curve of recipes over their length.

    python -m benchmarks.time_to_robust --data TRAIN --test TEST --out runs/time_to_robust --preset cpu|gpu|record
    python -m benchmarks.time_to_robust --data TRAIN --test TEST --out runs/mine --config cifar_l2_fast.yaml
                                        --epochs 5,10,30 [--seeds 0,1] [--standard-images 1000] [--FIELD VALUE ...]

Every length and seed is a run of its own, as its schedule of lr and attack depends on the length. The clock starts with
the images in memory and the network compiled, and stops with the selected classifier on disk; choosing the best epoch
on held-out training images is within. Compiling and starting are reported apart. A run that was stopped goes on, and
its clock with it. The robust accuracy is that of apgd-ce and apgd-t on all test images, and of the standard AutoAttack
on the first --standard-images of them.

Each run leaves a line in OUT/curve.jsonl; the same command skips what has one. Other flags go to the recipe. A preset
is a list of recipes and lengths, from minutes to hours: cpu for two cores, gpu for one GPU, and record, whose network
is large.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m benchmarks.time_to_robust --preset cpu ...

gives each core a rank of its own, which may be faster than threads (see benchmarks.train_ranks).
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from eval.robust.config import RobustConfig
from eval.robust.run import run_robust
from robust_models.runtime.command import OneLineParser, add_config_flags
from robust_models.runtime.config import read_recipe, resolve
from robust_models.runtime.distributed import join
from robust_models.runtime.signals import Interrupted, StopSignals
from robust_models.runtime.version import environment
from train.config import TrainConfig
from train.loop import run_to_end
from train.report import Silence
from train.run import Run

Row = dict[str, Any]
Plan = list[tuple[str, dict[str, Any], int]]  # a recipe, what is changed of it, and its epochs


PRESETS: dict[str, Plan] = {
    "cpu": [
        *(("cifar_l2_small.yaml", {"arch": "preact_resnet10_w16"}, epochs) for epochs in (1, 2, 4)),
        *(("cifar_l2_small.yaml", {}, epochs) for epochs in (2, 5, 10, 28)),
        *(("cifar_l2_base.yaml", {}, epochs) for epochs in (20, 40)),
    ],
    "gpu": [
        *(("cifar_l2_small.yaml", {}, epochs) for epochs in (5, 10)),
        *(("cifar_l2_fast.yaml", {}, epochs) for epochs in (5, 10, 20, 30)),
    ],
    "record": [
        ("cifar_l2_fast.yaml", {"arch": "wide_resnet_28_10", "objective": {"awp": 0.005}}, epochs)
        for epochs in (15, 40)
    ],
}


def warm_up(run: Run) -> float:
    """Seconds that one step and one evaluation take at first, compiling; the run is left as it was."""
    start = time.perf_counter()
    parts = (run.model, run.ema.model, run.optimizer)
    before = [deepcopy(part.state_dict()) for part in parts]
    progress = deepcopy(run.progress)
    run.step(*run.loader.batch(0))
    with torch.no_grad():
        run.ema.model.eval()(run.loader.batch(0)[0].float() / 255)
    for part, state in zip(parts, before, strict=True):
        part.load_state_dict(state)
    run.pending.clear()
    run.progress = progress
    _wait(run)
    return time.perf_counter() - start


def train_timed(config: TrainConfig) -> Row:
    """Trains from scratch and reports how long that took; the classifier is config.out/classifier.safetensors."""
    start = time.perf_counter()
    with StopSignals() as stop, join() as ranks, closing((run := Run(config, ranks)).loader):
        stop.ranks = ranks
        opened_s = time.perf_counter() - start
        compile_s = 0.0 if run.finished else warm_up(run)
        run.restart_clock()
        try:
            run_to_end(run, stop, Silence())
        except Interrupted:
            run.save()
            ranks.barrier()
            raise
    return {
        "ranks": ranks.world,
        "train_s": run.progress.wall_s,
        "compile_s": compile_s,
        "open_s": opened_s,
        "steps": run.progress.step,
        "validation": run.progress.best_scores,
    }


def _wait(run: Run) -> None:
    if run.model.mean.is_cuda:
        torch.cuda.synchronize()


def measure(config: TrainConfig, test: str, images: int | None, standard_images: int) -> Row:
    """Clean and robust accuracy on the test images, with 95 % intervals; {} on torchrun's ranks after the first."""
    ckpt = str(config.out / "classifier.safetensors")
    common = {"ckpt": ckpt, "data": test, "norm": config.attack.norm, "eps": config.attack.radius}
    row: Row = {}
    if apgd := run_robust(RobustConfig(**common, attack="apgd", limit=images)):
        row = {
            "n": apgd["n"],
            "clean_accuracy": apgd["clean_accuracy"],
            "apgd_accuracy": apgd["robust_accuracy"],
            "apgd_interval": apgd["interval"],
        }
    if standard_images and (standard := run_robust(RobustConfig(**common, attack="autoattack", limit=standard_images))):
        row |= {
            "standard_n": standard["n"],
            "standard_accuracy": standard["robust_accuracy"],
            "standard_interval": standard["interval"],
        }
    return row


def plan(args: argparse.Namespace) -> Plan:
    """Of the preset, or of the recipe and the lengths given."""
    return (
        PRESETS[args.preset]
        if args.preset
        else [(args.config, {}, epochs) for epochs in map(int, args.epochs.split(","))]
    )


def configs(args: argparse.Namespace, flags: dict[str, Any]) -> Iterator[tuple[Row, TrainConfig]]:
    """What names each run of the curve, and the run."""
    for recipe, changed, epochs in plan(args):
        for seed in map(int, args.seeds.split(",")):
            values = read_recipe(recipe) | changed | {"epochs": epochs, "seed": seed}
            name = "-".join(
                [Path(recipe).stem, *([values["arch"]] if "arch" in changed else []), f"epochs{epochs}_seed{seed}"]
            )
            yield (
                {"run": name},
                resolve(TrainConfig, values | {"out": args.out / name}, {**flags, "data.path": args.data}),
            )


def table(rows: Sequence[Row]) -> str:
    """A line for each run, the shortest first."""
    lines = [f"{'run':50} train s  compile s    clean     apgd   standard"]
    for row in sorted(rows, key=lambda row: row["train_s"]):
        standard = f"{row['standard_accuracy']:9.2%}" if "standard_accuracy" in row else " " * 9
        lines.append(
            f"{row['run']:50} {row['train_s']:7.1f}  {row['compile_s']:9.1f}  "
            f"{row['clean_accuracy']:7.2%}  {row['apgd_accuracy']:7.2%}  {standard}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, help="in the place of --config and --epochs")
    parser.add_argument("--config", default="cifar_l2_fast.yaml")
    parser.add_argument("--data", required=True, help="training images, whatever --data.path of train takes")
    parser.add_argument("--test", required=True, help="labelled test images")
    parser.add_argument("--epochs", default="5,10,20,30", help="lengths of the runs")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test-images", type=int, help="only the first so many (default: all)")
    parser.add_argument("--standard-images", type=int, default=1000, help="for the standard AutoAttack; 0: none")
    add_config_flags(parser, TrainConfig, skip=("out", "epochs", "seed", "data.path"))
    flags = vars(parser.parse_args())
    del flags["debug"]
    own = ("preset", "config", "data", "test", "epochs", "seeds", "out", "test_images", "standard_images")
    args = argparse.Namespace(**{name: flags.pop(name) for name in own})
    args.out.mkdir(parents=True, exist_ok=True)
    curve, is_first = args.out / "curve.jsonl", os.environ.get("RANK", "0") == "0"
    rows = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
    for name, config in configs(args, flags):
        if name["run"] in (row["run"] for row in rows):
            continue
        trained = train_timed(config)
        measured = measure(config, args.test, args.test_images, args.standard_images)
        rows.append({**name, **trained, **measured, "environment": environment()})
        if is_first:
            with curve.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(table(rows), flush=True)
    if is_first:
        print(table(rows))


if __name__ == "__main__":
    main()
