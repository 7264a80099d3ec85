"""What the energy stage changes: images that classifiers make, at several numbers of steps.

    python -m benchmarks.energy curve --ckpt cifar10-l2-small,AFTER.safetensors --reference TEST.npz --out runs/curve
        [--num-images 500] [--steps 4,8,12,16,24,32] [--step-size 0.5] [--features SPACES] [--weights INCEPTION.pth]
    python -m benchmarks.energy picture --ckpt cifar10-l2-small,AFTER.safetensors --steps 8,16,32 --out energy.png

All classifiers climb the logit of the class from the same seeds by steps of one length. curve: Frechet distance and KID
to real images, precision, recall and coverage of each set in each space, a line of OUT/curve.jsonl each; what is there
is not measured again. picture: the same images of each class after each number of steps.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from eval.quality.config import QualityConfig
from eval.quality.run import run_quality
from refine.synthesis.run import synthesize_set
from refine.synthesis.tasks import generate
from robust_models import open_images
from robust_models.checkpoints.flags import file_of
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.grids import save_rows
from robust_models.runtime.files import sha256_of
from robust_models.runtime.version import environment

SHOWN = ("frechet", "kid", "precision", "recall", "coverage")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("curve", "picture"))
    parser.add_argument("--ckpt", required=True, help="classifiers, with commas")
    parser.add_argument("--steps", default="4,8,12,16,24,32")
    parser.add_argument("--step-size", type=float, default=0.5, help="L2, pixels in [0,1]")
    parser.add_argument("--num-images", type=int, help="default: 500, and 20 of a picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="real images")
    parser.add_argument("--features", default="efficientnet-lite0-128,classifier:cifar10-standard-small")
    parser.add_argument("--weights", help="of the Inception network")
    parser.add_argument("--out", type=Path, required=True, help="a folder, or the picture")
    args = parser.parse_args()
    if args.part == "picture":
        picture(args)
        return
    print("| classifier | steps | space | " + " | ".join(SHOWN) + f" |\n{'|---' * (3 + len(SHOWN))}|")
    for row in curve(args):
        for space in row["spaces"]:
            cells = " | ".join(f"{space[name]:.4g}" for name in SHOWN)
            print(f"| {row['ckpt']} | {row['steps']} | {space['features']} | {cells} |", flush=True)


def curve(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each classifier and number of steps, from OUT/curve.jsonl or measured now."""
    file = args.out / "curve.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for ckpt, steps in ((ckpt, steps) for ckpt in args.ckpt.split(",") for steps in map(int, args.steps.split(","))):
        n = args.num_images or 500
        what = {"ckpt": ckpt, "steps": steps, "step_size": args.step_size, "n": n, "seed": args.seed}
        what |= {"features": args.features, "reference": str(args.reference), "sha256": sha256_of(file_of(ckpt))}
        row = next((row for row in kept if {name: row.get(name) for name in what} == what), None)
        if row is None:
            path = args.out / f"{Path(ckpt).stem}-{steps}-{args.step_size:g}-{n}-{args.seed}.npz"
            made(path, ckpt, steps, n, args)
            found = run_quality(
                QualityConfig(
                    images=path,
                    reference=args.reference,
                    metrics="fid,kid,prc,density-coverage",
                    features=args.features,
                    weights=args.weights,
                )
            )
            spaces = [found, *found.get("spaces", [])]
            kept_of = ("features", "n_images", "n_reference", *SHOWN)
            row = what | {"spaces": [{name: space[name] for name in kept_of} for space in spaces]}
            with file.open("a") as lines:
                lines.write(json.dumps(row | {"environment": environment()}) + "\n")
        yield row


def made(path: Path, ckpt: str, steps: int, n: int, args: argparse.Namespace) -> torch.Tensor:
    """n images x_u8 [n,3,H,W] of the classes in turn, stored at path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config = generate.GenerateConfig(
        ckpt=ckpt, out=path, num_images=n, objective="logit", norm="unconstrained", steps=steps,
        step_size=args.step_size, seed=args.seed, overwrite=True,
    )  # fmt: skip
    synthesize_set(generate.TASK, config)
    return open_images(path).read(0, n)


def picture(args: argparse.Namespace) -> None:
    """Rows of classifiers and steps, columns of classes."""
    n = args.num_images or 20
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            (f"{Path(ckpt).stem}, {steps}", made(Path(folder) / f"{steps}.npz", ckpt, steps, n, args))
            for ckpt in args.ckpt.split(",")
            for steps in map(int, args.steps.split(","))
        ]
    save_rows(args.out, rows, [CIFAR10_CLASSES[i % 10] for i in range(n)], columns=min(n, 20))


if __name__ == "__main__":
    main()
