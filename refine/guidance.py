"""The classifier inside a diffusion sampler: the denoised estimate is refined while it forms.

At noise level sigma a sampler holds x = a (x0 + sigma n), and its network guesses x0. The guess is moved towards its
class, and the network's output is replaced by the one that would have guessed that: so the sampler goes on from the
moved image with noise that fits it, whatever it does with either. (Moving x0 alone would leave the old noise.)
"""

import copy
import functools
import math
import types
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from refine.generators.generator_flags import SIGMAS, Schedule
from refine.method import AGAINST_WEIGHT, LossName, bigroc
from refine.network import beside, together
from refine.refiner import Models
from robust_models.architectures.noised import AtNoise, is_noised
from robust_models.attacks import Loss, frozen_eval
from robust_models.errors import UserError, none_of
from robust_models.threat import NormName, check_ball

_BY_VARIANCE = ("DDPMScheduler", "DDIMScheduler")  # alphas_cumprod at the timestep
_BY_SIGMA = (  # x = x0 + sigma n
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
_BY_BOTH = (  # a and a * sigma from sigma
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_BY_PRECONDITIONING = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SCHEDULERS = (*_BY_VARIANCE, *_BY_SIGMA, *_BY_BOTH, *_BY_PRECONDITIONING)


class Line(NamedTuple):
    """What a network's output says: x0 = of_x * x + of_output * output, where x = scale * (x0 + sigma * noise)."""

    scale: float
    of_x: float
    of_output: float
    sigma: float


class Guidance:
    """x0 = guidance(x0, sigma, y): the denoised estimate of a sampling loop, moved towards the classes y.

        guidance = Guidance(robust_models.load("cifar10-l2-small"), eps=0.5)

        pipe.scheduler = guidance.around(pipe.scheduler, y)  # a pipeline of diffusers, for pixels

        for t in scheduler.timesteps:  # a loop with a scheduler of diffusers
            output = guidance.output(scheduler, unet(x, t).sample, t, x, y)
            x = scheduler.step(output, t, x).prev_sample

        for sigma, following in zip(sigmas, sigmas[1:]):  # a loop of one's own, in which x = x0 + sigma * noise
            x0 = guidance(denoised(x, sigma), sigma, y, x)
            x = x0 + following / sigma * (x - x0)

    Give either eps or scale. A classifier of images is enough, as it sees estimates of images, not noise. One that was
    trained on noised images, too (bigroc train --noised), sees x itself where there is a scale (Kawar et al. 2023,
    arXiv:2208.08664).

    eps       `steps` steps of refine.bigroc in a ball of eps * min(1, sigma), or of eps where schedule="constant";
              [0,1] pixel units.
    scale     the plain gradient instead, as if the network passed it on unchanged: x0 + scale * sigma^2 * gradient of
              -loss, in the units of x, clipped to the range of pixels.
    sigmas    noise levels between which it guides, in the units of x0; sqrt((1 - alphas_cumprod) / alphas_cumprod)
              where a scheduler keeps the variance. Elsewhere the estimate is not touched.
    pixel_range  of x0: diffusion models usually have (-1, 1). What an estimate has outside it is kept.
    The other settings are those of refine.bigroc. UserError for what does not fit.
    """

    def __init__(
        self,
        model: Models,
        eps: float | None = None,
        *,
        scale: float | None = None,
        steps: int = 1,
        schedule: Schedule = "sigma",
        sigmas: tuple[float, float] = SIGMAS,
        norm: NormName = "l2",
        loss: LossName | Loss = "ce",
        against: nn.Module | None = None,
        against_weight: float = AGAINST_WEIGHT,
        pixel_range: tuple[float, float] = (-1, 1),
    ) -> None:
        if (eps is None) == (scale is None):
            raise UserError(f"guidance: eps is {eps} and scale is {scale}; give one of them")
        if eps is not None:
            check_ball(norm, eps)
        elif not (scale is not None and 0 <= scale < math.inf):
            raise UserError(f"scale: {scale} is not a number of 0 or more")
        if schedule not in get_args(Schedule):
            raise UserError(f"schedule: {none_of(schedule, get_args(Schedule))}")
        low, high = sigmas
        if not 0 <= low <= high:
            raise UserError(f"sigmas: {low} to {high} holds no noise level; the lower one comes first")
        if tuple(pixel_range) not in ((0, 1), (-1, 1)):
            raise UserError(f"pixel_range: {pixel_range} is neither (0, 1) nor (-1, 1)")
        self.model = together(model)
        self.eps, self.scale, self.schedule = eps, scale, schedule
        self.sigmas, self.pixel_range = (low, high), pixel_range
        weak = None if against is None else beside(against, model)
        self._bigroc = functools.partial(
            bigroc, steps=steps, norm=norm, loss=loss, against=weak, against_weight=against_weight
        )
        self.sees_noise = scale is not None and is_noised(self.model)
        self._bigroc(0.0)  # refuses what does not fit

    @staticmethod
    def check(scheduler: Any) -> None:
        """UserError for a scheduler of diffusers whose noise, or whose network's output, is not known here."""
        if (name := type(scheduler).__name__) not in SCHEDULERS:
            raise UserError(f"guidance: a {name} is not among the schedulers that are known: {', '.join(SCHEDULERS)}")
        if (kind := scheduler.config.prediction_type) not in PREDICTIONS:
            raise UserError(f"guidance: the network predicts {kind}; known are {', '.join(PREDICTIONS)}")

    def is_at(self, sigma: float) -> bool:
        """Whether it guides at this noise."""
        return self.sigmas[0] <= sigma <= self.sigmas[1]

    @torch.inference_mode(False)  # in inference mode there are no gradients, not even under enable_grad
    def __call__(self, x0: Tensor, sigma: float, y: Tensor, x: Tensor | None = None) -> Tensor:
        """x0 [N,3,H,W] of any floating dtype, guessed at noise sigma, y [N] class indices -> alike, moved towards y.

        x: x0 + sigma * noise, from which it was guessed, for a classifier of noised images.
        """
        if not self.is_at(sigma):
            return x0
        low, high = self.pixel_range
        place = next(self.model.parameters(), x0)
        inside = x0.detach().to(place.device, torch.promote_types(torch.float32, place.dtype), copy=True)
        inside = inside.clamp(low, high)
        images, y = (inside - low) / (high - low), y.to(place.device)
        if self.scale is None:
            assert self.eps is not None
            eps = self.eps * (min(1.0, sigma) if self.schedule == "sigma" else 1.0)
            moved = self._bigroc(eps)(self.model, images, y) * (high - low) + low
        else:
            attack, seen = self._bigroc(0.0), self.model
            if self.sees_noise:
                seen, images = self._at_noise(x, sigma / (high - low), images)
            with frozen_eval(self.model):
                gradient, _ = attack.gradient(seen, images, y, attack.loss)
            # In the units of x: those of x0 are (high - low) times as many, its gradient as many times smaller.
            moved = (inside - self.scale * sigma**2 * gradient / (high - low)).clamp(low, high)
        return x0 + (moved - inside).to(x0.device, x0.dtype)

    def _at_noise(self, x: Tensor | None, sigma: float, like: Tensor) -> tuple[nn.Module, Tensor]:
        """The classifier that is told of the noise, and what it sees, pixels in [0,1] but for the noise."""
        if x is None:
            raise UserError("guidance: the classifier is one of noised images; pass them: guidance(x0, sigma, y, x)")
        low, high = self.pixel_range
        return AtNoise(self.model, torch.tensor(sigma)), (x.detach().to(like) - low) / (high - low)

    def output(self, scheduler: Any, output: Tensor, t: Any, x: Tensor, y: Tensor) -> Tensor:
        """The network's output [N,C,H,W] at x and t, replaced by one that says the moved estimate.

        scheduler: of diffusers, one of SCHEDULERS, before its step. Channels beyond those of x, the variances that
        some networks learn, stay as they are.
        """
        line = line_of(scheduler, t)
        if not self.is_at(line.sigma):
            return output
        said, learnt = output[:, : x.shape[1]], output[:, x.shape[1] :]
        x32, said32 = x.float(), said.float()
        x0 = line.of_x * x32 + line.of_output * said32
        if scheduler.config.get("clip_sample", False):
            most = scheduler.config.get("clip_sample_range", 1.0)
            x0 = x0.clamp(-most, most)
        noisy = x32 / line.scale if line.scale else None
        moved = (self(x0, line.sigma, y, noisy) - line.of_x * x32) / line.of_output
        return torch.cat([moved.to(output.dtype), learnt], dim=1)

    def around(self, scheduler: Any, y: Tensor) -> Any:
        """A copy of the scheduler that guides at each of its steps, for pipelines that call it themselves."""
        self.check(scheduler)
        guided = copy.copy(scheduler)
        step = types.MethodType(type(scheduler).step, guided)

        @functools.wraps(step)  # pipelines look at its arguments
        def guided_step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            return step(self.output(guided, model_output, timestep, sample, y), timestep, sample, *args, **kwargs)

        guided.step = guided_step
        return guided


def line_of(scheduler: Any, t: Any) -> Line:
    """How the output of a network at t, before the scheduler's step there, says x0; scheduler: one of SCHEDULERS."""
    name, kind = type(scheduler).__name__, scheduler.config.prediction_type
    if name in _BY_VARIANCE:
        kept = float(scheduler.alphas_cumprod[int(t)])
        a, s = math.sqrt(kept), math.sqrt(1 - kept)
    else:
        if scheduler.step_index is None:
            scheduler._init_step_index(t)  # as its step does
        sigma = scheduler.sigmas[scheduler.step_index]
        if name in _BY_PRECONDITIONING:
            of_x, of_output = (
                float(scheduler.precondition_outputs(*one, sigma)) for one in ((torch.ones(()), 0.0), (0.0, 1.0))
            )
            return Line(1.0, of_x, of_output, float(sigma))
        a, s = (1.0, float(sigma)) if name in _BY_SIGMA else map(float, scheduler._sigma_to_alpha_sigma_t(sigma))
    sigma = s / a if a else math.inf
    if kind == "sample":
        return Line(a, 0.0, 1.0, sigma)
    if kind == "epsilon":
        return Line(a, 1 / a if a else math.inf, -sigma, sigma)
    variance = a * a + s * s  # 1, or that to which the network's v is brought
    return Line(a, a / variance, -s / math.sqrt(variance), sigma)
