"""BIGRoC, Algorithm 1: a few targeted projected-gradient steps towards the image's class.

Ganz & Elad 2023, arXiv:2108.03702.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.network import consensus, noted_features, together
from robust_models.attacks import (
    PGD,
    Center,
    Gradient,
    Keep,
    Loss,
    cross_entropy,
    energy,
    frozen_eval,
    gradient_and_loss,
    negative_logit,
    target_margin,
)
from robust_models.errors import UserError, none_of
from robust_models.threat import NormName, check_ball, check_step_size, per_sample

AGAINST_WEIGHT = 0.5
STEPS = 7  # the paper's


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit less the target's, [N]: of the other classes only the strongest matters."""
    return -target_margin(logits, y)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """-log(p / (1 - p)) for the target's probability p, [N]; its gradient does not fade as p approaches 1.

    Computed as the logsumexp of the other logits less the target's: the same, without the cancellation in 1 - p.
    """
    is_y = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(is_y, -torch.inf).logsumexp(dim=1) - logits[is_y]


LossName = Literal["ce", "margin", "log_odds", "logit", "energy"]
LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "log_odds": log_odds,
    "logit": negative_logit,
    "energy": energy,
}
assert tuple(LOSSES) == get_args(LossName)


def find_loss(loss: str | Loss) -> Loss:
    """The loss of this name, (logits, y) -> [N]; a function is itself. Logits of several classifiers, [K,N,classes],
    give the mean of their losses.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise UserError(f"loss: {none_of(loss, LOSSES)}")
    single = LOSSES[loss] if isinstance(loss, str) else loss

    def averaged(logits: Tensor, y: Tensor) -> Tensor:
        if logits.ndim == 2:
            return single(logits, y)
        return torch.stack([single(one, y) for one in logits]).mean(dim=0)

    return averaged


@dataclass(frozen=True)
class Against:
    """The gradient of the loss less `weight` times that of a weaker classifier's: what only the stronger one asks for.

    The classifier's form of guiding a generator by a bad version of itself (Karras et al. 2024, arXiv:2406.02507). To
    be PGD's `gradient`.
    """

    weak: nn.Module
    weight: float

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor]:
        """Gradient [N,C,H,W] and the difference of the losses [N]."""
        gradient, values = gradient_and_loss(model, x, y, loss)
        with frozen_eval(self.weak):
            weak_gradient, weak_values = gradient_and_loss(self.weak, x, y, loss)
        return gradient - self.weight * weak_gradient, values - self.weight * weak_values


def doubt(logits: Tensor, y: Tensor) -> Tensor:
    """1 less the target's probability, [N]."""
    return 1 - logits.softmax(dim=1).gather(1, y[:, None])[:, 0]


@dataclass(frozen=True)
class StopAt:
    """The gradient, and 0 for images whose `measure` is `level` or less: they take no further step.

    Measures: the energy (-logsumexp of the logits), or doubt; that of several classifiers is their mean. An image that
    rests keeps it, and so rests until the end. To be PGD's `gradient`; `gradient` is the one it would have without.
    """

    measure: Loss
    level: float
    gradient: Gradient = gradient_and_loss

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor]:
        """Gradient [N,C,H,W] and loss [N], from one pass."""
        seen: list[Tensor] = []

        def noted(logits: Tensor, y: Tensor) -> Tensor:
            seen.append(find_loss(self.measure)(logits.detach(), y))
            return loss(logits, y)

        gradient, values = self.gradient(model, x, y, noted)
        own = seen[0]  # a weaker classifier's would come after it
        return torch.where(per_sample(own <= self.level, x), 0.0, gradient), values


@dataclass(frozen=True)
class ClassMeans:
    """Where the images of each class lie in the features of each classifier, and how near of them is near enough."""

    means: tuple[Tensor, ...]  # of each classifier, [classes,D]
    level: float  # L2 in the features

    @classmethod
    def of_real(cls, logits: Tensor, features: Sequence[Tensor]) -> "ClassMeans":
        """Those of real images, taken for the class they seem to be; the level is their median distance.

        logits [N,classes] float; features of each classifier, [N,D]. UserError where a class has no image.
        """
        y = logits.argmax(dim=1)
        counts = y.bincount(minlength=logits.shape[1])
        if (missing := int((counts == 0).sum())) > 0:
            raise UserError(
                f"stop_distance: of {len(y)} real images none seems to be of class {int(counts.argmin())} ({missing} "
                f"of {len(counts)} classes have none); give some of every class"
            )
        members = F.one_hot(y, len(counts)).T.double()
        found = cls(tuple((members @ part.double() / counts[:, None]).float() for part in features), torch.inf)
        return replace(found, level=float(found.distance(features, y).median()))

    def distance(self, features: Sequence[Tensor], y: Tensor) -> Tensor:
        """From features [N,D] of each classifier to the mean of class y [N], [N]; averaged over the classifiers."""
        gaps = [part - means.to(part.device)[y] for part, means in zip(features, self.means, strict=True)]
        return torch.stack([gap.norm(dim=1) for gap in gaps]).mean(dim=0)


@dataclass(frozen=True)
class StopNear:
    """The gradient, and 0 for images whose features are as near the mean of their class as `means` has it.

    To be PGD's `gradient`, as StopAt is.
    """

    means: ClassMeans
    gradient: Gradient = gradient_and_loss

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor]:
        """Gradient [N,C,H,W] and loss [N], from one pass."""
        with noted_features(model) as features:
            gradient, values = self.gradient(model, x, y, loss)
        near = self.means.distance([part.detach() for part in features], y) <= self.means.level
        return torch.where(per_sample(near, x), 0.0, gradient), values


def bigroc(
    eps: float,
    *,
    steps: int = STEPS,
    step_size: float | None = None,
    norm: NormName = "l2",
    center: Center = "input",
    keep: Keep = "last",
    loss: LossName | Loss = "ce",
    stop_energy: float | None = None,
    stop_confidence: float | None = None,
    stop_distance: ClassMeans | None = None,
    against: nn.Module | None = None,
    against_weight: float = AGAINST_WEIGHT,
) -> PGD:
    """The paper's loop: from the image itself, ball around it, last iterate of one run, clipped once at the end.

    eps and step_size are in [0,1] pixel units, step_size by default 1.5 * eps / steps.

    center="first_step" is the loop of the authors' notebooks: the ball lies around the point after step 1, so that
    images move up to eps + step_size, and every step is clipped. Their CIFAR-10 notebooks hold pixels in [-1,1]: halve
    their eps. keep="best" takes each image's best iterate, which may be the image itself; as it compares images, it
    clips every step too. loss: ce, margin, log_odds, logit (of the target), energy (no target's), or a function
    (logits, y) -> [N]. stop_energy: an image whose energy, -logsumexp of its logits, is this or less takes no further
    step; stop_confidence: nor does one that has this probability of its target, or more; stop_distance: nor one whose
    features are this near the mean of its target. against: a weaker classifier, whose loss the steps raise,
    against_weight times as much.
    """
    gradient: Gradient = gradient_and_loss
    if against is not None:
        if keep == "best":
            raise UserError("keep: 'best' compares losses of one classifier, and against names another; keep='last'")
        if not against_weight > 0:
            raise UserError(f"against_weight: {against_weight} is not above 0")
        gradient = Against(against, against_weight)
    if stop_energy is not None:
        gradient = StopAt(energy, stop_energy, gradient)
    if stop_confidence is not None:
        if not 0 < stop_confidence <= 1:
            raise UserError(f"stop_confidence: {stop_confidence} is no probability above 0")
        gradient = StopAt(doubt, 1 - stop_confidence, gradient)
    if stop_distance is not None:
        gradient = StopNear(stop_distance, gradient)
    check_ball(norm, eps)
    check_step_size(norm, eps, step_size)
    as_in_the_paper = center == "input" and keep == "last"
    return PGD(
        eps,
        1.5 * eps / max(steps, 1) if step_size is None else step_size,
        steps,
        norm=norm,
        targeted=True,
        box="last" if as_in_the_paper else "every_step",
        center=center,
        keep=keep,
        loss=find_loss(loss),
        gradient=gradient,
    )


@torch.no_grad()
def pseudo_labels(model: nn.Module, x: Tensor) -> Tensor:
    """The class that the model sees in each image of x [N,C,H,W], [N] int64; of several models, by mean probability."""
    with frozen_eval(model):
        return consensus(model(x)).argmax(dim=1)


@torch.no_grad()
def class_means(model: nn.Module | Sequence[nn.Module], x: Tensor) -> ClassMeans:
    """What stop_distance wants, of real images x [N,3,H,W] in [0,1], in one pass of the classifier or of several.

    UserError where a class has no image, or where a classifier has no last linear layer.
    """
    network = together(model)
    with frozen_eval(network), noted_features(network) as features:
        logits = consensus(network(x))
    if not features:
        raise UserError("stop_distance: no classifier with features; robust_models.load or from_module makes one")
    return ClassMeans.of_real(logits, features)


def trajectory(attack: PGD, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """x [N,C,H,W] after 0, 1, ... steps of the attack, clipped to [0,1]: attack.steps + 1 batches of images."""
    with frozen_eval(model):
        return [iterate.x_adv.clamp(0, 1) for iterate in attack.iterates(model, x, y, x)]
