"""How often the 95 % intervals of `bigroc eval quality --intervals` hold what they are about, beside a bootstrap's.

    python -m benchmarks.coverage --out coverage.jsonl --images TRAIN.npz --weights INCEPTION_FILE

A population is known: Gaussian or heavy-tailed numbers (spectrum 1/k), or the features of real images, drawn with
replacement. Each trial draws N images from it, shifted or scaled, and asks for the interval of their distance to a
fixed reference; the truth is the mean distance of many such draws. The bootstrap, the peer, takes percentiles of
resamples about the distance found. --others measures KID, precision, recall, density and coverage in its place.

One line of JSON an entry, which names its trials; entries that are there are not run again. Features of real images
are kept beside the file. In the end, and with --table at once, the entries are printed as a table in Markdown.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterable
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
OTHERS = ("kid", "precision", "recall", "density", "coverage")
OTHERS_REFERENCE = 1000  # real images that KID and the neighbourhoods are compared with
TRUTH = 600  # draws
DEAR = 200_000_000  # multiplications: from here on half the trials, and no bootstrap beside them
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


DRAWN = {"equal": (0.0, 1.0), "shifted": (0.5, 1.0), "scaled": (0.0, 1.3)}  # shift and scale against the reference


def cases() -> list[Case]:
    """From cheap to dear."""
    sizes = [(16, 64), (16, 256), (16, 1000), (16, 5000), (64, 64), (64, 256), (64, 1000), (64, 5000), (256, 256)]
    made = [Case(p, d, n, *how) for p in ("gauss", "heavy") for d, n in sizes for how in DRAWN.values()]
    made += [Case("isotropic", d, n) for d in (16, 64) for n in (64, 256)]
    made += [Case("gauss", 512, n, *how) for n in (256, 1000) for how in DRAWN.values()] + [Case("gauss", 512, 5000)]
    real = [Case(p, int(p[5:]), n, *how) for p in REAL for n in (64, 256, 1000) for how in DRAWN.values()]
    real += [Case("real-128", 128, 5000, *how) for how in DRAWN.values()] + [Case("real-768", 768, 5000)]
    return sorted(made + real, key=cost)


def cost(case: Case) -> int:
    """Multiplications of one covariance, or of one Gram matrix where that is smaller."""
    return case.dim * case.n * min(case.dim, case.n)


def trials_of(case: Case, trials: int) -> int:
    """Half of them where a distance is dear, a quarter where it is dearer still."""
    return trials // (4 if cost(case) > 5 * DEAR else 2 if cost(case) > DEAR else 1)


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
    ways = {"half_splits": lambda resampler, trial: distance_interval(resampler, SPLITS, seed=trial)}
    if cost(case) < DEAR:
        ways["bootstrap"] = lambda resampler, trial: bootstrap_interval(resampler, rng)
    intervals = {name: [] for name in ways}
    for trial in range(trials):
        resampler = sample()
        for name, interval in ways.items():
            intervals[name].append(np.maximum(interval(resampler, trial), 0))
    found = {"truth": float(truth), "trials": trials}
    for name, (low, high) in ((name, np.transpose(pairs)) for name, pairs in intervals.items()):
        found[name] = float(((low <= truth) & (truth <= high)).mean())
        found[f"{name}_width"] = float((high - low).mean() / spread)
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
    figures = zip(OTHERS, truth, held, widths, strict=True)
    return {"trials": trials, **{n: {"truth": t, "held": h, "width": w} for n, t, h, w in figures}}


def entry_of(case: Case, trials: int, others: bool, features: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """The line of one case, the same whatever was measured before it."""
    rng = np.random.default_rng(zlib.crc32(repr(case).encode()))
    if case.population in REAL:
        reference = features(case.population)
        draw: Draw = lambda n: reference[rng.integers(0, len(reference), n)]  # noqa: E731
    else:
        draw = made_up(case, rng)
        reference = draw(20_000)
    trials = trials_of(case, trials)
    found = others_measured(case, draw, reference, trials) if others else measured(case, draw, reference, trials, rng)
    return {**asdict(case), **found}


def table(entries: Iterable[dict[str, Any]]) -> str:
    """Markdown: a row for each population and N, a cell for each way of drawing."""
    rows: dict[tuple[str, int, int], dict[tuple[float, float], str]] = {}
    for entry in entries:
        row = rows.setdefault((entry["population"], entry["dim"], entry["n"]), {})
        row[entry["shift"], entry["scale"]] = others_cell(entry) if "kid" in entry else distance_cell(entry)
    lines = [f"| images, d | N | {' | '.join(DRAWN)} |", "|---" * (2 + len(DRAWN)) + "|"]
    for (population, dim, n), row in sorted(rows.items()):
        name = f"{NAMES[population]}, {dim}"
        lines.append(f"| {name} | {n} | {' | '.join(row.get(how, '') for how in DRAWN.values())} |")
    return "\n".join(lines)


NAMES = {
    "gauss": "Gaussian",
    "heavy": "heavy-tailed",
    "isotropic": "Gaussian, equal variances",
    "real-128": "real",
    "real-768": "real",
}


def distance_cell(entry: dict[str, Any]) -> str:
    """Coverage in percent and relative width, in brackets the bootstrap's where it was measured."""
    ours = f"{100 * entry['half_splits']:.1f}, {entry['half_splits_width']:.2f}"
    if "bootstrap" not in entry:
        return ours
    return f"{ours} ({100 * entry['bootstrap']:.1f}, {entry['bootstrap_width']:.2f})"


def others_cell(entry: dict[str, Any]) -> str:
    """Coverage in percent of KID, precision, recall, density and coverage."""
    return ", ".join(f"{100 * entry[name]['held']:.1f}" for name in OTHERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="real images; without, only made-up numbers")
    parser.add_argument("--weights", type=Path, help="Inception's; without, no real-768")
    parser.add_argument("--limit", type=int, default=5000, help="real images of the population")
    parser.add_argument("--others", action="store_true", help="intervals of the other scores, where N is below 1,000")
    parser.add_argument(
        "--trials", type=int, default=400, help="of an entry; half or a quarter of them where it is dear"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    args = parser.parse_args()
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    print(json.dumps(environment()), file=sys.stderr)

    def features(population: str) -> np.ndarray:
        kept = args.out.with_suffix(f".{population}.npy")
        return features_of(REAL[population], args.images, args.weights, args.limit, kept)

    for case in [] if args.table else cases():
        if (
            any(asdict(case).items() <= entry.items() for entry in done)
            or (args.others and case.n >= OTHERS_REFERENCE)
            or (case.population in REAL and args.images is None)
            or (case.population == "real-768" and args.weights is None)
        ):
            continue
        done.append(entry_of(case, args.trials, args.others, features))
        with args.out.open("a") as file:
            print(json.dumps(done[-1]), file=file)
        print(json.dumps(done[-1]), file=sys.stderr, flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
