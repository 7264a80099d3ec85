"""Balanced targets: class counts that follow a prior exactly, at the highest total log-probability."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refine.label_files import check_is_file, read_table
from refine.transport import chunks, transport
from robust_models.errors import UserError
from robust_models.labels import class_index

_CLASS_COLUMNS = ("class", "class_name", "label", "name")
_WEIGHT_COLUMNS = ("weight", "weights", "prior", "probability", "count", "counts")


def balanced(log_probs: Tensor, prior: Tensor | None = None) -> Tensor:
    """The class of each image, int64 [N] on the CPU, from log_probs [N,C].

    The counts are those of class_counts, and no assignment with these counts has a higher sum of log-probabilities.
    prior [C] holds non-negative weights (None: uniform), which need not sum to 1. A log-probability of -inf is taken
    only where the counts leave no other choice. UserError for NaN or +inf, and for a prior that is none.
    """
    if log_probs.ndim != 2 or not log_probs.is_floating_point() or 0 in log_probs.shape:
        raise UserError(f"log_probs: {log_probs.dtype} {list(log_probs.shape)}; expected float [N,C] with N, C > 0")
    scores = log_probs.detach().cpu()
    scores = (scores if scores.dtype == torch.float64 else scores.float()).numpy()
    _check_scores(scores)
    weights = torch.ones(scores.shape[1]) if prior is None else prior
    if weights.shape != scores.shape[1:]:
        raise UserError(f"prior: {list(weights.shape)} weights for {scores.shape[1]} classes; expected one for each")
    return torch.from_numpy(transport(scores, class_counts(len(scores), weights, first=_expected_counts(scores))))


def class_counts(n: int, prior: Tensor, *, first: np.ndarray | None = None) -> np.ndarray:
    """How many of n images each class gets for weights [C], int64 [C]: n * prior / sum(prior), by largest remainder.

    Of equal remainders those of the classes with the largest `first` [C] go up, then those of the lowest index.
    """
    weights = prior.detach().cpu().double().numpy()
    if not np.isfinite(weights).all() or (weights < 0).any():
        worst = int(np.argmax(~np.isfinite(weights) | (weights < 0)))
        raise UserError(f"prior: the weight of class {worst} is {weights[worst]:g}; expected 0 or more")
    if not weights.any():
        raise UserError("prior: all weights are 0; at least one class needs a positive one")
    share = weights / weights.max()
    quota = n * share / share.sum()
    quota = quota.round(12 - len(str(n)))  # twelve digits: remainders that differ by rounding alone become equal
    counts = np.floor(quota).astype(np.int64)
    preference = np.zeros(len(weights)) if first is None else -first
    order = np.lexsort((np.arange(len(weights)), preference, counts - quota))
    order = order[weights[order] > 0]
    counts[order[: n - counts.sum()]] += 1
    return counts


def parse_prior(text: str, class_names: Sequence[str]) -> Tensor:
    """ "uniform", or a CSV or JSON file of class (name or index) and weight (or count) -> weights [C] that sum to 1.

    Classes that the file does not name get none. See read_table for the layouts; weights without class
    names are those of all classes, in order.
    """
    check_prior(text)
    if text == "uniform":
        return torch.full((len(class_names),), 1 / len(class_names), dtype=torch.float64)
    rows = read_table(Path(text), field="prior", names=_CLASS_COLUMNS, values=_WEIGHT_COLUMNS)
    if rows[0].name is None and len(rows) != len(class_names):
        raise UserError(
            f"prior: {text} has {len(rows)} weights without names for {len(class_names)} classes; name the classes"
        )
    weights = torch.zeros(len(class_names), dtype=torch.float64)
    named: set[int] = set()
    for i, (name, value) in enumerate(rows):
        label = i if name is None else class_index(name, class_names, source=f"prior: {text}")
        if label in named:
            raise UserError(f"prior: {text} names {class_names[label]} twice")
        named.add(label)
        weights[label] = _weight(value, f"prior: {text}: the weight of {class_names[label]}")
    if not weights.any():
        raise UserError(f"prior: all weights in {text} are 0; at least one class needs a positive one")
    return weights / weights.sum()


def check_prior(text: str) -> None:
    """UserError unless text is "uniform" or names a file that is there."""
    if text == "uniform":
        return
    if not Path(text).suffix and not Path(text).exists():
        raise UserError(f"prior: {text!r} is neither uniform nor a CSV or JSON file of classes and weights")
    check_is_file(Path(text), field="prior")


def _weight(value: str | int | float, where: str) -> float:
    try:
        weight = float(value)
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f"{where} is {value}; expected a number of 0 or more")
    return weight


def _check_scores(scores: np.ndarray) -> None:
    largest = np.concatenate([rows.max(axis=1) for rows in chunks(scores)])
    bad = ~(largest < np.inf)  # NaN compares false
    if bad.any():
        raise UserError(
            f"log_probs: image {int(bad.argmax())} has NaN or +inf among its log-probabilities ({int(bad.sum())} such "
            f"images); check the classifier and its precision"
        )


def _expected_counts(scores: np.ndarray) -> np.ndarray:
    """Sum of the probabilities of each class, float64 [C]."""
    return np.sum([np.exp(rows).sum(axis=0, dtype=np.float64) for rows in chunks(scores)], axis=0)
