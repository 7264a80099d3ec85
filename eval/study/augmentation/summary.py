"""What an augmentation study has found: means over seeds, paired differences, and both in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from eval.study.augmentation.cells import Cell
from eval.study.augmentation.config import NONE, AugmentationConfig

LEAST_SEEDS = 3  # for an interval
SCORES = ("clean", "robust")
Found = Mapping[Cell, Mapping[str, Any]]  # the results of the cells that are done


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds in percent (points, where it is of differences) and its 95 % t-interval."""

    mean: float
    interval: tuple[float, float] | None  # None: too few seeds

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """values: shares of 1, one for each seed."""
        percent = 100 * np.asarray(values, dtype=np.float64)
        mean, n = float(percent.mean()), len(percent)
        if n < LEAST_SEEDS:
            return cls(mean, None)
        half = float(stats.t.ppf(0.975, n - 1) * percent.std(ddof=1) / math.sqrt(n))
        return cls(mean, (mean - half, mean + half))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves no doubt of it, else 0."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return int(low > 0) - int(high < 0)

    def __str__(self) -> str:
        return (
            f"{self.mean:.1f}"
            if self.interval is None
            else "{:.1f} ({:.1f} to {:.1f})".format(self.mean, *self.interval)
        )

    def signed(self) -> str:
        """As a difference: "+1.2 (0.4 to 2.0)"."""
        within = "" if self.interval is None else " ({:+.1f} to {:+.1f})".format(*self.interval)
        return f"{self.mean:+.1f}{within}"


def rows(config: AugmentationConfig, found: Found) -> list[dict[str, Any]]:
    """For each training, amount and addition: means, and differences paired by seed.

    "against none", "against raw": of the same training and amount, without addition and with the samples unrefined.
    """
    raw_of = _raw_of(config)
    table = []
    names = (NONE, *(one.name for one in config.added))
    for training, amount, added in product([one.name for one in config.trainings], config.amounts, names):
        own = _by_seed(found, training, amount, added)
        if not own:
            continue
        row: dict[str, Any] = {"training": training, "amount": amount, "added": added, "seeds": sorted(own)}
        row |= {score: Estimate.of([one[score] for one in own.values()]) for score in SCORES}
        for what, other in (("none", NONE), ("raw", raw_of.get(added))):
            base = {} if other in (None, added) else _by_seed(found, training, amount, str(other))
            if both := sorted({*own} & {*base}):
                differences = {s: Estimate.of([own[k][s] - base[k][s] for k in both]) for s in SCORES}
                row[f"against {what}"] = differences
        table.append(row)
    return table


def answer(table: Sequence[Mapping[str, Any]]) -> str:
    """Whether refined samples teach more than raw ones, in one sentence."""
    compared = [row for row in table if "against raw" in row]
    if not compared:
        return "Nothing to answer yet: no refined set stands beside the same samples unrefined."
    lines = []
    for score in SCORES:
        signs = [row["against raw"][score].sign for row in compared]
        better, worse = signs.count(1), signs.count(-1)
        lines.append(f"{score} accuracy significantly higher in {better} of {len(signs)} settings and lower in {worse}")
    return f"With refined samples in place of the same ones unrefined: {'; '.join(lines)}."


def cautions(config: AugmentationConfig, missing: int) -> list[str]:
    """What may mislead a reader."""
    found = []
    if missing:
        found.append(f"{missing} classifiers are not there yet; means and differences are of the seeds that are.")
    if len(config.seeds) < LEAST_SEEDS:
        found.append(f"{len(config.seeds)} seeds: too few for intervals; give {LEAST_SEEDS} or more.")
    if foreign := [one.name for one in config.added if one.refine is not None and one.trained_by is None]:
        found.append(
            f"{', '.join(foreign)}: refined by a classifier that may have seen more labels than there are real images "
            "here; what it knows of them reaches the samples. Compare with ckpt trained:NAME, which knows no more."
        )
    return found


def report(config: AugmentationConfig, table: Sequence[Mapping[str, Any]], said: str, notes: Sequence[str]) -> str:
    """The study in Markdown."""
    robust = config.robust
    lines = [
        f"# {config.title}",
        "",
        said,
        "",
        f"Percent of test images; robust: PGD-{robust.steps}, {robust.norm} eps {robust.eps:g}. Means over seeds with "
        f"95 % t-intervals; differences in points, paired by seed. Every classifier: {config.updates} optimizer steps "
        f"of {config.train}; samples take {100 * config.share:.0f} % of a batch. 0 real images: samples alone, whose "
        "clean accuracy is the Classification Accuracy Score.",
        "",
    ]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    heads = ("Training", "Real", "Added", "Clean", "Robust", "Clean, less none", "Robust, less none")
    heads += ("Clean, less raw", "Robust, less raw")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in table:
        cells = [row["training"], str(row["amount"]), row["added"], *(str(row[score]) for score in SCORES)]
        for what in ("against none", "against raw"):
            cells += [row[what][score].signed() if what in row else "" for score in SCORES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def format_augmentation(summary: dict[str, Any]) -> str:
    """The answer, the table, how much is done, and what failed."""
    lines = [summary["table"], f"{summary['num_done']} of {summary['num_cells']} classifiers in {summary['out']}"]
    lines[-1] += f"; {summary['wall_s']} s"
    lines += [f"{name}: {path}" for name, path in summary["reports"].items()]
    if summary["failed"]:
        lines += [f"{len(summary['failed'])} failed; the same command tries them again:"]
        lines += [f"  {failed['job']}: {failed['error']}" for failed in summary["failed"]]
    return "\n".join(lines)


def _raw_of(config: AugmentationConfig) -> dict[str, str]:
    """Refined sets, and what the same samples are called unrefined."""
    raw = {one.path: one.name for one in config.added if one.refine is None}
    return {one.name: raw[one.path] for one in config.added if one.refine is not None and one.path in raw}


def _by_seed(found: Found, training: str, amount: int, added: str) -> dict[int, Mapping[str, Any]]:
    return {
        cell.seed: result
        for cell, result in found.items()
        if (cell.training, cell.amount, cell.added) == (training, amount, added)
    }
