"""Makes a discriminator's logit the log-odds of being real: logistic regression on images new to it."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from benchmarks.comparison.latent_gan import Scale


@dataclass(frozen=True)
class Calibration:
    """The scale, and how far the discriminator was from being calibrated before and is after: |z| < 2 is close.

    z is of other images than those that the scale was fitted on.
    """

    scale: Scale
    z_before: float
    z_after: float


def calibrate(real: Tensor, fake: Tensor) -> Calibration:
    """From logits [N] of real images and of made ones, as many: fitted on every other one, checked on the rest.

    Turner et al. 2019, arXiv:1811.11357, section 4.
    """
    scale = logistic(real[::2], fake[::2])
    return Calibration(scale, z_statistic(real[1::2], fake[1::2]), z_statistic(*_scaled(scale, real[1::2], fake[1::2])))


def logistic(real: Tensor, fake: Tensor) -> Scale:
    """Slope and offset of the highest likelihood; labels lie just inside 0 and 1 (Platt 1999), so both are finite."""
    logits = torch.cat([real, fake]).double().numpy()
    labels = np.concatenate(
        [np.full(len(real), (len(real) + 1) / (len(real) + 2)), np.full(len(fake), 1 / (len(fake) + 2))]
    )
    middle, spread = logits.mean(), logits.std() or 1.0
    standard = (logits - middle) / spread

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        d = weights[0] * standard + weights[1]
        excess = expit(d) - labels
        return float((np.logaddexp(0, d) - labels * d).mean()), np.array([(excess * standard).mean(), excess.mean()])

    slope, offset = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Scale(float(slope / spread), float(offset - slope * middle / spread))


def z_statistic(real: Tensor, fake: Tensor) -> float:
    """sum(y - D) / sqrt(sum D (1 - D)) over images, y = 1 of real ones: standard normal where D is calibrated.

    Logits beyond 30 count as 30: the D of these is 1 in any case.
    """
    d = torch.cat([real, fake]).double().clamp(-30, 30).sigmoid()
    return float((len(real) - d.sum()) / (d * (1 - d)).sum().sqrt())


def _scaled(scale: Scale, *logits: Tensor) -> list[Tensor]:
    return [scale.slope * one + scale.offset for one in logits]
