"""Norm balls around an image: the geometry that training, refinement and evaluation share.

Pixels are in [0,1]; eps and step sizes are in those units. The [0,1] box is the attack's business, not the ball's.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.errors import UserError, none_of

NormName = Literal["l2", "linf", "l1", "l1.5", "fourier", "unconstrained"]
NEWTON_STEPS = 10  # eight reach the precision of float64 from any start
ROUNDING = 1e-6  # a projected point that float32 puts this share outside is not projected again


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N,1,...,1], to broadcast against like [N,...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


class Norm(ABC):
    """One threat-model geometry; every method takes and gives a batch [N,...]."""

    name: NormName
    eps_max: float  # a larger radius cannot be meant (no bound for norms that grow with the number of pixels)

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """Norm of each sample, [N]."""

    @abstractmethod
    def project(self, delta: Tensor, eps: float) -> Tensor:
        """Nearest point (in L2) to each sample of delta inside the eps-ball. Madry et al. 2018, arXiv:1706.06083."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Direction of length 1 along which a linear function with this gradient grows fastest; 0 where it is flat."""

    @abstractmethod
    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        """Uniform draw from the eps-ball, one per sample of like."""

    def linear_oracle(self, gradient: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """The delta in the eps-ball, with x + delta in [0,1], that goes farthest along each gradient.

        eps [N], a radius for each sample. This is the linear problem of a Frank-Wolfe step, whose points then need no
        projection. The gradient's length does not matter. UserError for a norm that has no solution here.
        """
        raise UserError(f"norm: {self.name} has no Frank-Wolfe steps inside [0,1]; take projection steps")


@dataclass(frozen=True)
class L2(Norm):
    """Euclidean distance; the steepest step is the gradient at length 1."""

    name: NormName = "l2"
    eps_max: float = math.inf

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        scale = (eps / self.length(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1.0)
        return delta * per_sample(scale, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Divide by the largest entry first: the square of a gradient of a confident network underflows in float32.
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_sample(largest, gradient)
        return scaled / per_sample(self.length(scaled).clamp_min(0.5), gradient)

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        direction = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        volume = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        radius = eps * volume ** (1.0 / like[0].numel())  # uniform in volume: nearly all of it lies at the surface
        return direction * per_sample(radius / self.length(direction), like)

    def linear_oracle(self, gradient: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return _power_oracle(gradient, x, eps, 2)


@dataclass(frozen=True)
class Linf(Norm):
    """The largest change of any pixel; the steepest step is the gradient's sign."""

    name: NormName = "linf"
    eps_max: float = 1.0

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(dim=1)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta.clamp(-eps, eps)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        return eps * (2 * torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) - 1)

    def linear_oracle(self, gradient: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        _, room = _slopes_and_room(gradient, x)
        return _delta(room.minimum(eps.unsqueeze(1)), gradient)


@dataclass(frozen=True)
class L1(Norm):
    """Few pixels, each changed by much.

    The exact steepest step moves one coordinate, which would take thousands of steps: here the `share` of coordinates
    with the largest gradient move alike, at least one. That is the steepest direction among those of length 1 whose
    entries are at most 1 / count. Tramèr & Boneh 2019 (SLIDE), arXiv:1904.13000.
    """

    share: float = 0.01
    name: NormName = "l1"
    eps_max: float = math.inf

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(dim=1)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        # Soft thresholding, the threshold found by sorting. Duchi et al. 2008, figure 1.
        size = delta.flatten(1).abs().double()  # sums over an image cancel in float32
        largest = size.sort(dim=1, descending=True).values
        excess = largest.cumsum(1) - eps
        count = torch.arange(1, size.shape[1] + 1, device=size.device)
        kept = (largest * count > excess).sum(1, keepdim=True).clamp_min(1)
        shrunk = (size - excess.gather(1, kept - 1) / kept).clamp_min(0)
        total = shrunk.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        shrunk = shrunk * (eps / total).clamp_max(1)  # what rounding left outside
        nearest = shrunk.view_as(delta).to(delta.dtype).copysign(delta)
        return torch.where(per_sample(self.length(delta) > eps * (1 + ROUNDING), delta), nearest, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        moved = flat.abs().topk(max(1, int(self.share * flat.shape[1])), dim=1).indices
        signs = flat.gather(1, moved).sign()
        step = signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        return torch.zeros_like(flat).scatter(1, moved, step).view_as(gradient)

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        # Exponential sizes over their sum and one more are uniform in the ball. Barthe et al. 2005, theorem 1.
        draws = torch.empty(len(like), like[0].numel() + 1, device=like.device, dtype=like.dtype)
        draws.exponential_(generator=generator)
        signs = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) - 0.5
        return (eps * draws[:, :-1] / draws.sum(1, keepdim=True)).view_as(like).copysign(signs)

    def linear_oracle(self, gradient: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        # The steepest pixels use all their room, one after the other, until the radius is used up.
        slope, room = _slopes_and_room(gradient, x)
        order = slope.argsort(dim=1, descending=True, stable=True)
        room = room.gather(1, order)
        left = (eps.double().unsqueeze(1) - room.cumsum(1) + room).clamp_min(0)
        return _delta(torch.zeros_like(room).scatter(1, order, room.minimum(left)), gradient)


@dataclass(frozen=True)
class L15(Norm):
    """Between L1 and L2: sparser changes than L2's, smoother ones than L1's. Boreiko et al. 2022, arXiv:2205.07972.

    They avoid the projection, by Frank-Wolfe steps, as one that is hard to compute. It is a root of one equation: the
    nearest point shrinks each size a to s^2 with s^2 + c s = a, and c is where the sizes together have the length eps.
    """

    name: NormName = "l1.5"
    eps_max: float = math.inf

    def length(self, delta: Tensor) -> Tensor:
        size = delta.flatten(1).abs()
        largest = size.amax(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
        return largest * (size / largest.unsqueeze(1)).pow(1.5).sum(dim=1).pow(2 / 3)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        tiny = torch.finfo(torch.float64).tiny
        size = delta.flatten(1).abs().double()
        largest = size.amax(dim=1, keepdim=True).clamp_min(tiny)
        a, radius = size / largest, (eps / largest).clamp_min(1e-30)
        c = torch.zeros_like(largest)
        for _ in range(NEWTON_STEPS):  # on the power -1/3 of the sum, which is nearly a line in c
            root = (c.square() + 4 * a).sqrt()
            cubes = (2 * a / (c + root).clamp_min(tiny)).pow(3)
            total, slope = (
                cubes.sum(1, keepdim=True),
                (cubes / root.clamp_min(tiny)).sum(1, keepdim=True).clamp_min(tiny),
            )
            c = (c + (radius.pow(-0.5) - total.pow(-1 / 3)) * total.pow(4 / 3) / slope).clamp_min(0)
        shrunk = (2 * a / (c + (c.square() + 4 * a).sqrt()).clamp_min(tiny)).square()
        shrunk = shrunk * (eps / (largest * shrunk.pow(1.5).sum(1, keepdim=True).pow(2 / 3)).clamp_min(tiny))
        nearest = (shrunk * largest).view_as(delta).to(delta.dtype).copysign(delta)
        return torch.where(per_sample(self.length(delta) > eps * (1 + ROUNDING), delta), nearest, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        # By Hoelder's inequality, with the dual norm L3: each entry moves by the square of its slope.
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        direction = (gradient / per_sample(largest, gradient)).square().copysign(gradient)
        return direction / per_sample(self.length(direction).clamp_min(0.5), gradient)

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        # Sizes whose powers 1.5 are Gamma(2/3), over the power of their sum and one more, are uniform in the ball.
        # Barthe et al. 2005, theorem 1.
        shape = torch.full((len(like), like[0].numel()), 2 / 3, device=like.device, dtype=like.dtype)
        powers = torch._standard_gamma(shape, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
        more = torch.empty(len(like), 1, device=like.device, dtype=like.dtype).exponential_(generator=generator)
        signs = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) - 0.5
        return (eps * (powers / (powers.sum(1, keepdim=True) + more)).pow(2 / 3)).view_as(like).copysign(signs)

    def linear_oracle(self, gradient: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return _power_oracle(gradient, x, eps, 1.5)


def _power_oracle(gradient: Tensor, x: Tensor, eps: Tensor, p: float) -> Tensor:
    """The linear oracle of the norm with power p > 1. Boreiko et al. 2022, arXiv:2205.07972, proposition 1.

    Pixels move by factor * slope^(1/(p-1)), but no farther than their room; the factor gives all the length eps. It
    lies between two of the factors at which a pixel has used its room, which sorting finds.
    """
    slope, room = _slopes_and_room(gradient, x)
    tiny = torch.finfo(torch.float64).tiny
    wish = torch.where(slope == 0, 1.0, slope.pow(1 / (p - 1)).clamp_min(tiny))
    full_at, order = (room / wish).sort(dim=1)
    by_full = F.pad(room.gather(1, order).pow(p).cumsum(1), (1, 0))  # [N,D+1], entry k is of the first k pixels
    by_others = F.pad(wish.gather(1, order).pow(p).flip(1).cumsum(1).flip(1), (0, 1))  # and of the rest
    budget = eps.double().unsqueeze(1).pow(p)
    full = (by_full[:, 1:] + full_at.pow(p) * by_others[:, 1:] <= budget).sum(1, keepdim=True)
    left = (budget - by_full.gather(1, full)).clamp_min(0)
    factor = (left / by_others.gather(1, full).clamp_min(tiny)).pow(1 / p)
    factor = torch.where(full == room.shape[1], torch.inf, factor)
    return _delta((factor * wish).minimum(room), gradient)


def _slopes_and_room(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of the gradient, each sample's largest 1, and how far pixels can go its way in [0,1]; [N,D] float64.

    The room of a pixel without a slope is 0. float64, as powers of small slopes underflow in float32.
    """
    slope, x = gradient.flatten(1).double(), x.flatten(1).double()
    room = torch.where(slope > 0, 1 - x, torch.where(slope < 0, x, 0.0)).clamp_min(0)
    size = slope.abs()
    return size / size.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny), room


def _delta(size: Tensor, gradient: Tensor) -> Tensor:
    """Sizes [N,D] with the gradient's signs and shape."""
    return size.view_as(gradient).to(gradient.dtype).copysign(gradient)


@dataclass(frozen=True)
class Fourier(Norm):
    """Every frequency of every channel may change by eps: Linf of the moduli of the orthonormal 2-D Fourier transform.

    The transform keeps L2 distances, so that clipping the moduli gives the nearest point; a constant shift of a
    HxW image by s has length s * sqrt(HW). Inputs are [..., H, W].
    """

    name: NormName = "fourier"
    eps_max: float = math.inf

    def length(self, delta: Tensor) -> Tensor:
        return _spectrum(delta).abs().flatten(1).amax(dim=1)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        spectrum = _spectrum(delta)
        modulus = spectrum.abs().clamp_min(torch.finfo(delta.dtype).tiny)
        nearest = _image(spectrum * (eps / modulus).clamp_max(1.0), delta)
        outside = modulus.flatten(1).amax(dim=1) > eps * (1 + ROUNDING)
        return torch.where(per_sample(outside, delta), nearest, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        numbers = torch.finfo(gradient.dtype)
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(numbers.tiny)
        spectrum = _spectrum(gradient / per_sample(largest, gradient))
        modulus = spectrum.abs()
        noise = numbers.eps * modulus.flatten(1).amax(dim=1)  # what rounding leaves of a frequency that is not there
        present = modulus > per_sample(noise, modulus)
        return _image(torch.where(present, spectrum / modulus.clamp_min(numbers.tiny), 0), gradient)

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        # White noise has independent Gaussian coefficients. Each keeps its phase, and its modulus becomes that of a
        # uniform draw from the disc; from the interval where the coefficient is real, being its own conjugate.
        noise = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        spectrum = _spectrum(noise)
        modulus = spectrum.abs()
        in_disc = (1 - (-modulus.square()).exp()).sqrt()
        in_interval = torch.erf(modulus / math.sqrt(2))
        radius = eps * torch.where(_self_conjugate(like), in_interval, in_disc)
        return _image(spectrum * (radius / modulus.clamp_min(torch.finfo(like.dtype).tiny)), like)


def _spectrum(x: Tensor) -> Tensor:
    """Half of the coefficients [..., H, W//2+1]; those of a real image's other half are their conjugates."""
    return torch.fft.rfft2(x, norm="ortho")


def _image(spectrum: Tensor, like: Tensor) -> Tensor:
    return torch.fft.irfft2(spectrum, s=like.shape[-2:], norm="ortho")


def _self_conjugate(like: Tensor) -> Tensor:
    """Which frequencies of the half-spectrum are their own negatives: 0 and, of an even size, the highest."""
    height, width = like.shape[-2:]
    rows = 2 * torch.arange(height, device=like.device) % height == 0
    columns = 2 * torch.arange(width // 2 + 1, device=like.device) % width == 0
    return rows.unsqueeze(1) & columns


@dataclass(frozen=True)
class Unconstrained(L2):
    """L2 steps without projection; eps must be inf (or 0, which as everywhere is no attack)."""

    name: NormName = "unconstrained"

    def random(self, like: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        if math.isinf(eps):
            raise UserError("random_start: a whole space has no uniform draw; norm=unconstrained starts at the image")
        return super().random(like, eps, generator)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (L2(), Linf(), L1(), L15(), Fourier(), Unconstrained())}
assert tuple(NORMS) == get_args(NormName)


@dataclass(frozen=True)
class ThreatModel:
    """What a classifier was trained to withstand: a norm by name and a radius (pixels in [0,1])."""

    norm: str
    eps: float

    def __str__(self) -> str:
        radius = f"{self.eps * 255:.3g}/255" if self.norm == "linf" else f"{self.eps:g}"
        return f"{self.norm} eps {radius}"


def check_norm(norm: str) -> None:
    """UserError, with the near miss, for a name that is not in NORMS."""
    if norm not in NORMS:
        raise UserError(f"norm: {none_of(norm, NORMS)}")


def check_ball(norm: str, eps: float) -> None:
    """UserError for an unknown norm, and for an eps that it cannot have (the slip: 8 for 8/255 of [0,1] pixels)."""
    check_norm(norm)
    if not eps >= 0:  # NaN compares false
        raise UserError(f"eps: {eps} is less than 0")
    if norm == Unconstrained.name:
        if eps not in (0, math.inf):
            raise UserError(f"eps: {eps:g} bounds nothing for norm={norm}; write eps=.inf, or norm=l2 for a ball")
    elif math.isinf(eps):
        raise UserError(f"eps: inf is no radius for norm={norm}; give a number, or norm={Unconstrained.name}")
    elif eps > NORMS[norm].eps_max:
        raise UserError(
            f"eps: {eps:g} is outside [0, {NORMS[norm].eps_max:g}] for norm={norm} (pixels are in [0,1]); "
            f"did you mean {eps:g}/255 = {eps / 255:.4f}?"
        )


def check_step_size(norm: str, eps: float, step_size: float | None) -> None:
    """UserError for steps of no finite length; None stands for a length derived from eps, which must then be finite."""
    if step_size is None and math.isinf(eps):
        raise UserError(f"step_size: norm={norm} has no radius to derive it from; give one (pixels in [0,1])")
    if step_size is not None and not 0 <= step_size < math.inf:
        raise UserError(f"step_size: {step_size:g} is no length; give a number of 0 or more (pixels in [0,1])")
