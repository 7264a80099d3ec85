"""Frechet distance of a set refined without its labels: raw, and towards pseudo, debiased and balanced targets.

    python -m benchmarks.balanced_targets --images data/vae10k.npz --limit 2000 --eps 3 5

All targets share one pass of the classifier and one loop; the labels that the set may have are not looked at. Features
should be those of a network that took no part in the refining. Intervals: 95 %, the images resampled.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refine import bigroc
from refine.balance import balanced
from refine.targets import debiased, pseudo
from robust_models import PGD, RobustClassifier, load, open_images, to_float, to_u8
from robust_models.features import FeatureExtractor, open_features
from robust_models.metrics import FrechetStatistics, StoredStatistics, frechet_distance, read_statistics
from robust_models.runtime.device import pick_device, place
from robust_models.runtime.version import environment

RESAMPLES = 200


def refined(model: RobustClassifier, attack: PGD, x_u8: Tensor, y: Tensor, batch_size: int) -> Tensor:
    parts = zip(x_u8.split(batch_size), y.split(batch_size), strict=True)
    device = model.mean.device
    return torch.cat([to_u8(attack(model, to_float(x.to(device)), t.to(device))).cpu() for x, t in parts])


@dataclass(frozen=True)
class Score:
    """A Frechet distance, and that of RESAMPLES resampled sets; equal seeds resample two sets alike (paired)."""

    whole: float
    resampled: np.ndarray

    def __sub__(self, other: "Score") -> "Score":
        return Score(self.whole - other.whole, self.resampled - other.resampled)

    def interval(self) -> tuple[float, float]:
        """95 %. A resample holds fewer different images, which raises every distance: only its spread is taken."""
        low, high = np.quantile(self.resampled - self.resampled.mean(), [0.025, 0.975]) + self.whole
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.whole:8.3f}  {f'{low:.3f} to {high:.3f}':>16}"


def score(extractor: FeatureExtractor, reference: StoredStatistics, x_u8: Tensor, batch_size: int) -> Score:
    features = torch.cat([extractor(x).cpu() for x in x_u8.split(batch_size)]).double().numpy()
    rng = np.random.default_rng(0)
    draws = (features[rng.integers(0, len(features), len(features))] for _ in range(RESAMPLES))
    return Score(_distance(features, reference), np.array([_distance(draw, reference) for draw in draws]))


def _distance(features: np.ndarray, reference: StoredStatistics) -> float:
    statistics = FrechetStatistics(features.shape[1])
    statistics.update(features)
    return frechet_distance(statistics, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000, help="the first so many images")
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--features", default="classifier:cifar10-standard-small")
    parser.add_argument("--reference", type=Path, default=Path("robust_models/pretrained/cifar10-train-statistics.npz"))
    parser.add_argument("--eps", type=float, nargs="+", default=[3.0, 5.0])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    device = pick_device(args.device)
    model = place(load(args.ckpt), device, "fp32")
    extractor = open_features(args.features, device=device)
    reference = read_statistics(args.reference)
    if reference is None:
        parser.error(f"--reference: {args.reference} holds no statistics; see `bigroc eval statistics`")
    images = open_images(args.images)
    x_u8 = images.read(0, min(args.limit, len(images)))
    with torch.no_grad():
        logits = torch.cat([model(to_float(x.to(device))).cpu() for x in x_u8.split(args.batch_size)])
    targets = {"pseudo": pseudo(logits), "debiased": debiased(logits), "balanced": balanced(logits.log_softmax(1))}

    print(f"N = {len(x_u8)} against N = {reference.n}, features {extractor.name}, refined by {args.ckpt}")
    print(f"{'eps':>5}  {'targets':<9} {'frechet':>8}  {'95 % interval':>16}  images per class, least to most")
    rows: list[dict] = []

    def measured(eps: float, name: str, images_u8: Tensor, y: Tensor) -> Score:
        found = score(extractor, reference, images_u8, args.batch_size)
        counts = torch.bincount(y, minlength=logits.shape[1])
        print(f"{eps:5g}  {name:<9} {found}  {counts.min()} to {counts.max()}", flush=True)
        low, high = found.interval()
        rows.append(
            {"eps": eps, "targets": name, "frechet": found.whole, "low": low, "high": high, "counts": counts.tolist()}
        )
        return found

    measured(0.0, "raw", x_u8, targets["pseudo"])
    for eps in args.eps:
        attack = bigroc(eps, steps=args.steps)
        found = {
            name: measured(eps, name, refined(model, attack, x_u8, y, args.batch_size), y)
            for name, y in targets.items()
        }
        for other in ("pseudo", "debiased"):
            print(f"{eps:5g}  balanced less {other}, paired: {found['balanced'] - found[other]}", flush=True)
    print(json.dumps({"n": len(x_u8), "rows": rows, "environment": environment()}))


if __name__ == "__main__":
    main()
