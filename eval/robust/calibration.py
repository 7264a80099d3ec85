"""Calibration: whether a classifier that is 80 % sure is right 80 % of the time. Guo et al. 2017, arXiv:1706.04599."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from robust_models import UserError

BINS = 15
DRAWS = 1000  # of labels, for what chance alone shows
LEAST_IMAGES = 4
_TEMPERATURES = (1e-3, 1e3)


@dataclass(frozen=True)
class Calibration:
    """Errors are measured on the n images of one half; the temperature was fitted on the n_fit of the other."""

    n: int
    n_fit: int
    bins: int
    ece: float
    by_chance: tuple[float, float]  # of a calibrated classifier with these confidences: mean, and 95 % stay below
    temperature: float
    ece_scaled: float  # with the logits divided by the temperature
    by_chance_scaled: tuple[float, float]
    mean_confidence: float
    accuracy: float


def measure_calibration(logits: Tensor, y: Tensor, *, bins: int = BINS, seed: int = 0) -> Calibration:
    """The expected calibration error of logits [N,classes] for y [N], as it is and after temperature scaling.

    The images are cut in two at random, by seed: the temperature is fitted on one half, and both errors are those of
    the other, so that neither has seen its labels. UserError for fewer than 4 images.
    """
    n = len(y)
    if n < LEAST_IMAGES:
        raise UserError(f"calibration: {n} images are too few to cut in two; give at least {LEAST_IMAGES}")
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(n))
    fit, test = order[: n // 2], order[n // 2 :]
    temperature = fit_temperature(logits[fit], y[fit])
    tested, labels = logits[test].double(), y[test]
    scaled = tested / temperature
    return Calibration(
        n=len(test),
        n_fit=len(fit),
        bins=bins,
        ece=expected_calibration_error(tested, labels, bins=bins),
        by_chance=error_by_chance(tested, bins, rng),
        temperature=temperature,
        ece_scaled=expected_calibration_error(scaled, labels, bins=bins),
        by_chance_scaled=error_by_chance(scaled, bins, rng),
        mean_confidence=float(tested.softmax(1).amax(1).mean()),
        accuracy=float((tested.argmax(1) == labels).double().mean()),
    )


def expected_calibration_error(logits: Tensor, y: Tensor, *, bins: int = BINS) -> float:
    """Mean over images of |accuracy - mean confidence| in the bin of equal width that their largest probability is in.

    logits [N,classes], y [N]. It is never negative, so that a few images show some error by chance alone.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    return float(_error(confidence.numpy(), (predicted == y).double().numpy()[None], bins)[0])


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """The T that makes the cross-entropy of logits / T [N,classes] for y [N] least, between 0.001 and 1000.

    A bound is reached where logits separate the classes (0.001) or say nothing of them (1000).
    """
    wide, rows = logits.double(), torch.arange(len(y))

    def loss(log_scale: float) -> float:  # convex in 1 / T, so with one minimum in its logarithm
        log_probs = (wide * math.exp(log_scale)).log_softmax(1)
        return -float(log_probs[rows, y].mean())

    low, high = (-math.log(bound) for bound in reversed(_TEMPERATURES))
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(-found.x)


def error_by_chance(logits: Tensor, bins: int, rng: np.random.Generator) -> tuple[float, float]:
    """The mean and the 95 % quantile of the error that these N confidences show where they are exactly right.

    By drawing whether each image is right with its own confidence. Vaicenavicius et al. 2019, arXiv:1902.06977.
    """
    confidence = logits.double().softmax(1).amax(1).numpy()
    right = rng.random((DRAWS, len(confidence))) < confidence
    errors = _error(confidence, right.astype(np.float64), bins)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def _error(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """Of confidence [N] and right [draws,N], 0 or 1: [draws]. Bins are open below and closed above, as in the paper."""
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    member = np.eye(bins)[bin_of]  # [N,bins]
    return np.abs((right - confidence) @ member).sum(1) / len(confidence)
