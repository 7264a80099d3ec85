"""Frechet distance of an image set to a reference, raw and refined at several eps: the U-shape of the paper's table 8.

    python -m benchmarks.eps_sweep --ckpt cifar10-l2-small --images vae10k.npz --eps 1 2 3 5 8 \\
        --reference robust_models/pretrained/cifar10-train-statistics.npz --features classifier:cifar10-standard-small

The features should be those of a network that took no part in the refining.
"""

import argparse
import json
import tempfile
from pathlib import Path

from eval.quality.config import QualityConfig
from eval.quality.run import run_quality
from refine.config import RefineConfig
from refine.pipeline import refine_set
from robust_models.runtime.version import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--eps", type=float, nargs="+", required=True)
    args = parser.parse_args()

    def frechet(images: Path) -> dict:
        return run_quality(QualityConfig(images=images, reference=args.reference, features=args.features))

    raw = frechet(args.images)
    print(f"N = {raw['n_images']} against N = {raw['n_reference']}, features {raw['features']}")
    print(f"{'eps':>5}  {'frechet':>9}  {'change':>7}  {'images/s':>8}\n{'raw':>5}  {raw['frechet']:9.4f}")
    rows = [{"eps": 0.0, "frechet": raw["frechet"]}]
    with tempfile.TemporaryDirectory() as folder:
        for eps in args.eps:
            out = Path(folder) / f"eps{eps:g}.npz"
            summary = refine_set(RefineConfig(ckpt=args.ckpt, input=args.images, out=out, eps=eps))
            row = {**summary, "frechet": frechet(out)["frechet"]}
            change = row["frechet"] / raw["frechet"] - 1
            print(f"{eps:5g}  {row['frechet']:9.4f}  {change:+7.1%}  {row['images_per_s']:8.1f}", flush=True)
            rows.append(row)
            out.unlink()
    print(json.dumps({"rows": rows, "quality": raw, "environment": environment()}))


if __name__ == "__main__":
    main()
