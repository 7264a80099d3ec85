"""How often the 95 % intervals of `bigroc eval quality --intervals` hold what they are about, beside a bootstrap's.

    python -m benchmarks.coverage --out coverage.jsonl --images TRAIN.npz --weights INCEPTION_FILE

A population is known: Gaussian or heavy-tailed numbers (spectrum 1/k), or the features of real images, drawn with
replacement. Each trial draws N images from it, shifted or scaled, and asks for the interval of their distance to a
fixed reference; the truth is the mean distance of many such draws. The bootstrap, the peer, takes percentiles of
resamples about the distance found. --others measures KID, precision, recall, density and coverage in its place.
One line of JSON an entry; entries that are there are not run again. Features of
real images are kept beside the file.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_models import open_images
from robust_models.features import open_features
from robust_models.metrics import (
    FrechetReference,
    FrechetStatistics,
    Resampler,
    bootstrap_counts,
    distance_interval,
    precision_recall,
)
from robust_models.metrics.density_coverage import density_coverage
from robust_models.metrics.kernel import kernel_interval
from robust_models.metrics.kernel_resampled import KernelReference
from robust_models.metrics.neighbour_intervals import density_coverage_intervals, precision_recall_intervals
from robust_models.runtime.version import environment

SPLITS = 100
RESAMPLES = 100
OTHERS_REFERENCE = 1000  # real images that KID and the neighbourhoods are compared with
TRUTH = 600  # draws
REAL = {"real-128": "classifier:cifar10-standard-small", "real-768": "inception-768"}
Draw = Callable[[int], np.ndarray]  # N -> features [N,D]


@dataclass(frozen=True)
class Case:
    """A population, and what is drawn from it."""

    population: str  # gauss, heavy (Student's t with 8 degrees of freedom), isotropic, real-128, real-768
    dim: int
    n: int
    shift: float = 0.0  # of the first feature, in its standard deviations
    scale: float = 1.0  # about the mean


def cases() -> list[Case]:
    """Those of real images first, then from cheap to dear."""
    drawn = ((0.0, 1.0), (0.5, 1.0), (0.0, 1.3))  # equal to the reference, shifted, scaled
    made = [Case(p, d, n, *how) for d in (16, 64) for n in (64, 256) for p in ("gauss", "heavy") for how in drawn]
    made += [Case("isotropic", d, n) for d in (16, 64) for n in (64, 256)]
    real = [Case(p, int(p[5:]), n, *how) for n in (64, 256, 1000) for p in REAL for how in drawn]
    large = [Case("gauss", d, n, *how) for d, n in ((16, 1000), (64, 1000), (256, 256), (512, 256)) for how in drawn]
    larger = [Case("gauss", 512, n) for n in (1000, 5000)] + [Case(p, int(p[5:]), 5000) for p in REAL]
    return [*real, *made, *large, *larger]


def made_up(case: Case, rng: np.random.Generator) -> Draw:
    """Numbers with variances that fall as 1/k (equal where isotropic) and add up to 1."""
    spectrum = np.ones(case.dim) if case.population == "isotropic" else 1 / np.arange(1, case.dim + 1)
    deviation = np.sqrt(spectrum / spectrum.sum())

    def draw(n: int) -> np.ndarray:
        z = rng.standard_normal((n, case.dim))
        if case.population == "heavy":
            z *= np.sqrt(6 / rng.chisquare(8, (n, 1)))
        return z * deviation

    return draw


def features_of(space: str, images: Path, weights: Path | None, limit: int, kept: Path) -> np.ndarray:
    """[limit,D] float64, from `kept` where they were computed before."""
    if not kept.exists():
        extractor = open_features(space, weights=weights if space.startswith("inception") else None)
        read = open_images(images)
        parts = [extractor(read.read(at, min(at + 100, limit))).numpy() for at in range(0, limit, 100)]
        np.save(kept, np.concatenate(parts))
    return np.load(kept)[:limit].astype(np.float64)


def bootstrap_interval(resampler: Resampler, rng: np.random.Generator) -> tuple[float, float]:
    """The peer: percentiles of resamples, their mean excess over the distance itself taken off."""
    found = np.array([resampler.distance(counts) for counts in bootstrap_counts(rng, resampler.n, RESAMPLES)])
    found -= found.mean() - resampler.distance(np.ones(resampler.n, dtype=np.int64))
    low, high = np.quantile(found, (0.025, 0.975))
    return max(0.0, float(low)), max(0.0, float(high))


def measured(case: Case, draw: Draw, reference: np.ndarray, trials: int, rng: np.random.Generator) -> dict[str, float]:
    """Coverage of both intervals and their width over that of +-1.96 true standard deviations."""
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    against = FrechetReference(FrechetStatistics.of(reference))
    whole = np.ones(case.n, dtype=np.int64)

    def sample() -> Resampler:
        x = (draw(case.n) - mean) * case.scale + mean
        x[:, 0] += case.shift * deviation[0]
        return Resampler(x, against)

    truths = np.array([sample().distance(whole) for _ in range(min(TRUTH, 20 * trials))])
    truth, spread = truths.mean(), 2 * 1.96 * truths.std()
    ours, theirs = [], []
    for trial in range(trials):
        resampler = sample()
        low, high = distance_interval(resampler, SPLITS, seed=trial)
        ours.append((max(0.0, low), max(0.0, high)))
        theirs.append(bootstrap_interval(resampler, rng))
    found = {"truth": float(truth), "trials": trials}
    for name, intervals in (("half_splits", np.array(ours)), ("bootstrap", np.array(theirs))):
        found[name] = float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())
        found[f"{name}_width"] = float((intervals[:, 1] - intervals[:, 0]).mean() / spread)
    return found


def others_of(x: Tensor, real: Tensor, seed: int | None) -> np.ndarray:
    """KID, precision, recall, density and coverage, [5]; with a seed their intervals instead, [5,2]."""
    if seed is None:
        kid = KernelReference(real).distance(x)
        return np.array([kid, *precision_recall(x, real), *density_coverage(x, real)])
    intervals = [
        kernel_interval(KernelReference(real).distance(x), x, real, SPLITS, seed=seed),
        *precision_recall_intervals(x, real, splits=SPLITS, seed=seed),
        *density_coverage_intervals(x, real, splits=SPLITS, seed=seed),
    ]
    return np.array(intervals)


def others_measured(case: Case, draw: Draw, reference: np.ndarray, trials: int) -> dict[str, Any]:
    """Coverage of each interval of others_of, and its mean width."""
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    real = torch.from_numpy(reference[:OTHERS_REFERENCE])

    def sample() -> Tensor:
        x = (draw(case.n) - mean) * case.scale + mean
        x[:, 0] += case.shift * deviation[0]
        return torch.from_numpy(x)

    truth = np.mean([others_of(sample(), real, None) for _ in range(min(TRUTH, 5 * trials))], axis=0)
    found = np.stack([others_of(sample(), real, trial) for trial in range(trials)])
    held = ((found[:, :, 0] <= truth) & (truth <= found[:, :, 1])).mean(axis=0)
    widths = (found[:, :, 1] - found[:, :, 0]).mean(axis=0)
    names = ("kid", "precision", "recall", "density", "coverage")
    figures = zip(names, truth, held, widths, strict=True)
    return {"trials": trials, **{n: {"truth": t, "held": h, "width": w} for n, t, h, w in figures}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="real images; without, only made-up numbers")
    parser.add_argument("--weights", type=Path, help="Inception's; without, no real-768")
    parser.add_argument("--limit", type=int, default=5000, help="real images of the population")
    parser.add_argument("--others", action="store_true", help="intervals of the other scores, where N is below 1,000")
    parser.add_argument("--trials", type=int, default=400, help="a quarter where N is 1,000 or more")
    args = parser.parse_args()
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    print(json.dumps(environment()), file=sys.stderr)
    for seed, case in enumerate(cases()):
        space = REAL.get(case.population)
        if any(asdict(case).items() <= entry.items() for entry in done) or (space and args.images is None):
            continue
        if space == "inception-768" and args.weights is None:
            continue
        rng = np.random.default_rng(seed)
        if space is None:
            draw = made_up(case, rng)
            reference = draw(20_000)
        else:
            kept = args.out.with_suffix(f".{case.population}.npy")
            reference = features_of(space, args.images, args.weights, args.limit, kept)

            def draw(n: int, rows: np.ndarray = reference, rng: np.random.Generator = rng) -> np.ndarray:
                return rows[rng.integers(0, len(rows), n)]

        if args.others:
            if case.n < 1000:
                entry = {**asdict(case), **others_measured(case, draw, reference, args.trials)}
                with args.out.open("a") as file:
                    print(json.dumps(entry), file=file)
                print(json.dumps(entry), flush=True)
            continue
        entry = {
            **asdict(case),
            **measured(case, draw, reference, args.trials if case.n < 1000 else args.trials // 4, rng),
        }
        with args.out.open("a") as file:
            print(json.dumps(entry), file=file)
        print(
            f"{case.population:9} d {case.dim:4} N {case.n:5} shift {case.shift:g} scale {case.scale:g}: "
            f"half splits {entry['half_splits']:.1%} (width {entry['half_splits_width']:.2f}), "
            f"bootstrap {entry['bootstrap']:.1%} ({entry['bootstrap_width']:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
