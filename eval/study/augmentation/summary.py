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
    """For each training, amount and addition: means over seeds, and differences paired by seed.

    against: by the name of another addition to the same training and amount: none and, of refined samples, the same
    ones unrefined. per_class: the mean clean and robust accuracy of each class.
    """
    table = []
    names = (NONE, *(one.name for one in config.added))
    for training, amount, added in product([one.name for one in config.trainings], config.amounts, names):
        own = _by_seed(found, training, amount, added)
        if not own:
            continue
        row: dict[str, Any] = {"training": training, "amount": amount, "added": added, "seeds": sorted(own)}
        row |= {score: Estimate.of([one[score] for one in own.values()]) for score in SCORES}
        row["per_class"] = _per_class([*own.values()])
        row["against"] = {}
        for other in (NONE, *_unrefined(config, added)):
            base = {} if other == added else _by_seed(found, training, amount, other)
            if both := sorted({*own} & {*base}):
                row["against"][other] = {s: Estimate.of([own[k][s] - base[k][s] for k in both]) for s in SCORES}
        table.append(row)
    return table


def answer(table: Sequence[Mapping[str, Any]]) -> str:
    """Whether refined samples teach more than the same ones unrefined, in one sentence."""
    compared = [differences for _, _, differences in _refined_against(table)]
    if not compared:
        return "Nothing to answer yet: no refined set stands beside the same samples unrefined."
    counts = []
    for score in SCORES:
        signs = [differences[score].sign for differences in compared]
        counts.append(f"{score} accuracy significantly higher in {signs.count(1)} and lower in {signs.count(-1)}")
    return f"With refined samples in place of the same ones unrefined, of {len(compared)} pairs: {'; '.join(counts)}."


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
    head = ("Training", "Real", "Added", "Clean", "Robust", "Clean, less none", "Robust, less none")
    shown = []
    for row in table:
        less_none = row["against"].get(NONE, {})
        cells = [row["training"], str(row["amount"]), row["added"], *(str(row[score]) for score in SCORES)]
        shown.append([*cells, *(less_none[score].signed() if less_none else "" for score in SCORES)])
    lines += _markdown(head, shown)
    if pairs := _refined_against(table):
        head = ("Training", "Real", "Refined", "in place of", "Clean", "Robust")
        shown = [
            [row["training"], str(row["amount"]), row["added"], other, *(found[score].signed() for score in SCORES)]
            for row, other, found in pairs
        ]
        lines += ["", *_markdown(head, shown)]
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


def _unrefined(config: AugmentationConfig, added: str) -> list[str]:
    """Of a refined set, what the same samples are called as they came, or with new labels only."""
    own = next((one for one in config.added if one.name == added), None)
    if own is None or not own.moves:
        return []
    return [one.name for one in config.added if one.path == own.path and not one.moves]


def _refined_against(table: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, Mapping[str, Estimate]]]:
    """Each row of refined samples, what the same ones are called unrefined, and the differences."""
    return [(row, other, found) for row in table for other, found in row["against"].items() if other != NONE]


def _per_class(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = results[0].get("per_class", {})
    return {name: np.mean([one["per_class"][name] for one in results], axis=0).tolist() for name in names}


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in body)]


def _by_seed(found: Found, training: str, amount: int, added: str) -> dict[int, Mapping[str, Any]]:
    return {
        cell.seed: result
        for cell, result in found.items()
        if (cell.training, cell.amount, cell.added) == (training, amount, added)
    }
