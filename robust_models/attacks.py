"""Projected gradient descent: the single loop that training, refinement and evaluation share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models.classifier import class_names_of
from robust_models.errors import UserError
from robust_models.images.pixels import check_images
from robust_models.threat import NORMS, NormName, check_ball, check_step_size, per_sample

Loss = Callable[[Tensor, Tensor], Tensor]
Box = Literal["every_step", "last"]
Center = Literal["input", "first_step"]
Keep = Literal["last", "best"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, [N]."""
    return F.cross_entropy(logits, y, reduction="none")


def negative_logit(logits: Tensor, y: Tensor) -> Tensor:
    """The energy of each image together with class y, [N]: the negative of its logit. arXiv:1912.03263."""
    return -logits.gather(1, y[:, None])[:, 0]


def energy(logits: Tensor, y: Tensor | None = None) -> Tensor:
    """The energy of each image, [N]: -logsumexp of its logits [N,C], whatever the class. arXiv:1912.03263.

    y has no part in it and is taken as every loss takes it.
    """
    return -logits.logsumexp(dim=1)


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with parameters that collect no gradient; modes and flags are put back as found."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def gradient_and_loss(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor]:
    """Gradient of the loss at x, [N,C,H,W], and the loss itself, [N]; parameters collect nothing."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        values = loss(model(x), y)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return gradient, values.detach()


Gradient = Callable[[nn.Module, Tensor, Tensor, Loss], tuple[Tensor, Tensor]]


class Iterate(NamedTuple):
    """One point of a run. `loss` [N] comes with the gradient taken there; None at the last point, which needs none."""

    x_adv: Tensor
    loss: Tensor | None


@dataclass(frozen=True)
class PGD:
    """x_adv = attack(model, x, y): `steps` steepest steps of length step_size, each projected on the eps-ball around x.

    x [N,C,H,W] in [0,1], y [N] int64. Untargeted (away from y) or targeted (towards y). With restarts, each sample
    keeps its worst run. Madry et al. 2018, arXiv:1706.06083.

    box     "every_step" clips to [0,1] inside the loop, as the robustness library does; "last" clips the result only,
            as BIGRoC's Algorithm 1 does.
    center  "input" is the ball around x; "first_step" is the ball around the point after step 1, so that images move
            up to eps + step_size, as BIGRoC's notebooks do.
    keep    "last" iterate, or for each sample the "best" by the loss (the start is among the candidates; the price is
            one more forward pass).
    loss    (logits, y) -> [N], one value per sample: each sample's gradient is its own, whatever the batch size.
    gradient  (model, x, y, loss) -> the gradient at x and the loss [N]; smoothing.SmoothedGradient averages over noise.
    """

    eps: float
    step_size: float
    steps: int
    norm: NormName = "l2"
    targeted: bool = False
    random_start: bool = False
    restarts: int = 1
    box: Box = "every_step"
    center: Center = "input"
    keep: Keep = "last"
    loss: Loss = cross_entropy
    gradient: Gradient = gradient_and_loss

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)
        check_step_size(self.norm, self.eps, self.step_size)
        for name, value, least in (("steps", self.steps, 0), ("restarts", self.restarts, 1)):
            if not value >= least:
                raise UserError(f"{name}: {value} is less than {least}")
        for name, choices in (("box", Box), ("center", Center), ("keep", Keep)):
            value, (one, other) = getattr(self, name), get_args(choices)
            if value not in (one, other):
                raise UserError(f"{name}: {value!r} is neither {one!r} nor {other!r}")
        if self.keep == "best" and self.box == "last":
            raise UserError(
                "keep: 'best' compares images, and box='last' makes iterates outside [0,1]; box='every_step'"
            )

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x_adv [N,C,H,W]. The first run begins at `start` where one is given; the generator draws the other starts.

        Works inside no_grad and inference_mode. UserError for pixels outside [0,1] and classes that do not fit.
        """
        check_images(x)
        if self.loss is cross_entropy or not (isinstance(y, Tensor) and y.is_floating_point()):
            names = class_names_of(model)
            check_labels(y, len(x), None if names is None else len(names))
            y = y.to(x.device, torch.int64)
        return self.unchecked(model, x, y, start=start, generator=generator)

    @torch.inference_mode(False)  # in inference mode there are no gradients, not even under enable_grad
    def unchecked(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The attack without the checks of a call, which wait for the GPU: for loops that know their images."""
        x, y = _outside_inference(x.detach()), _outside_inference(y)
        start = start if start is None else _outside_inference(start)
        with frozen_eval(model):
            x_adv = self._run(model, x, y, self._start(x, generator) if start is None else start)
            if self.restarts == 1:
                return x_adv
            worst = _failure(model, x_adv, y, self.targeted)
            for _ in range(self.restarts - 1):
                x_new = self._run(model, x, y, self._start(x, generator))
                failure = _failure(model, x_new, y, self.targeted)
                x_adv = torch.where(per_sample(failure > worst, x), x_new, x_adv)
                worst = torch.maximum(failure, worst)
        return x_adv

    def iterates(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Iterator[Iterate]:
        """The points of one run, steps + 1 of them from `start` on. With box="last" they may leave [0,1].

        The model is the caller's to freeze (frozen_eval), for as long as the iterator is used.
        """
        ball = NORMS[self.norm]
        direction = -self.step_size if self.targeted else self.step_size
        center, x_adv = x, start.detach()
        for step in range(self.steps):
            gradient, loss = self.gradient(model, x_adv, y, self.loss)
            yield Iterate(x_adv, loss)
            x_adv = x_adv + direction * ball.steepest(gradient)
            if step == 0 and self.center == "first_step":
                center = x_adv
            x_adv = center + ball.project(x_adv - center, self.eps)
            if self.box == "every_step":
                x_adv = x_adv.clamp(0, 1)
        yield Iterate(x_adv, None)

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.random_start:
            return x
        return (x + NORMS[self.norm].random(x, self.eps, generator)).clamp(0, 1)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        iterates = self.iterates(model, x, y, start)
        return (_last(iterates) if self.keep == "last" else self._best(iterates, model, y)).clamp(0, 1)

    @torch.no_grad()
    def _best(self, iterates: Iterator[Iterate], model: nn.Module, y: Tensor) -> Tensor:
        """The iterate of each sample whose loss is lowest (targeted) or highest."""
        best, of_best = next(iterates)
        if of_best is None:  # no steps
            return best
        for x_adv, loss in iterates:
            loss = self.loss(model(x_adv), y) if loss is None else loss
            better = loss < of_best if self.targeted else loss > of_best
            best = torch.where(per_sample(better, best), x_adv, best)
            of_best = torch.where(better, loss, of_best)
        return best


def _outside_inference(x: Tensor) -> Tensor:
    """x, or its copy where inference_mode made it: such a tensor takes part in no gradient."""
    return x.clone() if x.is_inference() else x


def _last(iterates: Iterator[Iterate]) -> Tensor:
    x_adv = None
    for x_adv, _ in iterates:  # noqa: B007  (only the last one is wanted)
        pass
    assert x_adv is not None  # a run has at least its start
    return x_adv


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """Gradient of the loss at x, [N,C,H,W]; parameters collect nothing."""
    return gradient_and_loss(model, x, y, loss)[0]


@torch.no_grad()
def _failure(model: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """How well the attack did on each sample, [N]: the margin by which the prediction is wrong (or on target)."""
    margin = target_margin(model(x), y)
    return margin if targeted else -margin


def target_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of y less the largest other logit, [N]; positive where the prediction is y."""
    is_y = F.one_hot(y, logits.shape[1]).bool()
    return logits[is_y] - logits.masked_fill(is_y, -torch.inf).amax(dim=1)


def check_labels(y: Any, n: int, num_classes: int | None) -> None:
    """UserError unless y is an integer tensor [n] of class indices below num_classes (None: unknown)."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool or y.shape != (n,):
        came = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"y: {came} for {n} images; expected one class index for each")
    if n == 0:
        return
    low, high = (int(value) for value in y.aminmax())
    if low < 0 or high >= (num_classes or high + 1):
        known = "class indices are 0 or more"
        if num_classes is not None:
            known = f"the classifier has {num_classes} classes (0 to {num_classes - 1})"
        raise UserError(f"y: classes run from {low} to {high}, but {known}")
