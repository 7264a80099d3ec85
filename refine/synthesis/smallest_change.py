"""The closest image of which a classifier says another class: steps in a ball, and the smallest ball that will do.

Balls and Frank-Wolfe steps are those of Boreiko et al. 2022, arXiv:2205.07972; the step lengths adapt to each image as
in Auto-PGD (Croce & Hein 2020, arXiv:2003.01690). What counts at every step is the image as it is stored, in 8 bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robust_models.attacks import cross_entropy, frozen_eval, input_gradient, target_margin
from robust_models.images import to_float, to_u8
from robust_models.threat import L2, NORMS, Norm, NormName, per_sample

Method = Literal["frank-wolfe", "projection"]
FIRST = {"frank-wolfe": 0.75, "projection": 2.0}  # the first step: a share of the way, and a multiple of the radius
LARGEST = 0.15  # the largest ball: a change of every pixel by this much
RANGE = 256  # the largest radius that is tried over the smallest one
ANGLE = 90.0  # degrees; narrower cones have nothing that people see (docs/counterfactuals.md)

Tick = Callable[[int], Any]


@dataclass(frozen=True)
class Search:
    """How to look for the closest images; pixels in [0,1].

    eps: the radius of one ball, in which the image with the highest probability of its target is taken. None: the
    smallest ball is looked for, by halving the range of radii `tries` times; there an image rests as soon as the
    classifier says its target with the confidence.
    """

    norm: NormName = "l1.5"
    eps: float | None = None
    method: Method = "frank-wolfe"
    steps: int = 20  # in each ball
    tries: int = 8
    confidence: float = 0.9


class Closest(NamedTuple):
    """Of N images, on the network's device."""

    x_u8: Tensor  # [N,3,H,W]
    eps: Tensor  # [N], the radius of the ball that it was found in
    is_valid: Tensor  # [N], whether its class is said with the confidence


class Point(NamedTuple):
    """Where N images stand."""

    x: Tensor  # [N,3,H,W] in [0,1], not rounded
    slope: Tensor  # the way that the loss rises
    loss: Tensor  # cross-entropy to the target, of the rounded image, [N]
    reached: Tensor  # whether the target is said of it with the confidence, [N]


Look = Callable[[Tensor], Point]


def closest(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    search: Search,
    *,
    guide: nn.Module | None = None,
    angle: float = ANGLE,
    tick: Tick = lambda steps: None,
) -> Closest:
    """The images closest to x [N,3,H,W] in [0,1] of which the network says the classes y [N].

    guide: a robust classifier that gives the steps their direction, where the network's own gradient is noise (see
    into_cone). tick is told of steps taken. Each image's result is its own, whatever the batch.
    """

    def look(z: Tensor) -> Point:
        seen = to_float(to_u8(z)).requires_grad_()
        with torch.enable_grad():
            logits = network(seen)
            loss = cross_entropy(logits, y)
            (slope,) = torch.autograd.grad(loss.sum(), seen)
        loss, logits = loss.detach(), logits.detach()
        reached = (target_margin(logits, y) > 0) & (loss <= -math.log(search.confidence))
        if guide is not None:
            slope = into_cone(input_gradient(guide, seen.detach(), y), slope, angle)
        return Point(z, slope, loss, reached)

    with frozen_eval(network), frozen_eval(guide or nn.Identity()), torch.no_grad():
        if search.eps is None:
            found, eps = _smallest(look, x, search, tick)
        else:
            eps = torch.full_like(x[:, 0, 0, 0], search.eps)
            found = steps_in_ball(look, x, eps, search, rest=False, tick=tick)
    return Closest(to_u8(found.x), eps, found.reached)


def into_cone(direction: Tensor, axis: Tensor, angle: float) -> Tensor:
    """The direction nearest to each given one, [N,...], that is at most `angle` degrees from the axis; length 1.

    90 degrees is the half-space on the axis's side, 0 the axis. Augustin et al. 2022, arXiv:2210.11841, guide steps by
    a robust classifier's gradient brought so close to that of the classifier that is explained.
    """
    unit, cosine, sine = L2().steepest, math.cos(math.radians(angle)), math.sin(math.radians(angle))
    direction, axis = unit(direction), unit(axis)
    along = (direction * axis).flatten(1).sum(1)
    edge = cosine * axis + sine * unit(direction - per_sample(along, axis) * axis)
    return torch.where(per_sample(along >= cosine, axis), direction, unit(edge))


def _smallest(look: Look, x: Tensor, search: Search, tick: Tick) -> tuple[Point, Tensor]:
    """The closest points found, and their balls' radii [N]. Where none is found, the surest one in the largest ball."""
    norm = NORMS[search.norm]
    largest = LARGEST * norm.length(torch.ones_like(x))
    low, high = largest / RANGE, largest
    best, of_best = None, largest
    for k in range(search.tries):
        radius = (low * high).sqrt() if k else largest
        found = steps_in_ball(look, x, radius, search, rest=True, tick=tick)
        length = norm.length(to_float(to_u8(found.x)) - x)
        closer = found.reached if best is None else found.reached & (~best.reached | (length < high))
        best = found if best is None else _where(closer, found, best)
        of_best = torch.where(closer, radius, of_best)
        high = torch.where(closer, length, high)
        low = torch.where(found.reached, low, radius).minimum(high)
    assert best is not None
    return best, of_best


def steps_in_ball(
    look: Look, x: Tensor, radius: Tensor, search: Search, *, rest: bool, tick: Tick = lambda steps: None
) -> Point:
    """The best of search.steps points after x in balls of these radii [N] around it; x itself counts.

    The best one is sure enough of its target or, of several that are or none, the surest. With rest an image that has
    reached its target takes no further step.
    """
    norm, size = NORMS[search.norm], torch.full_like(radius, FIRST[search.method])
    here = best = checked = look(x)
    falls, halved, since = torch.zeros_like(radius), torch.ones_like(best.reached), 0
    checks = checkpoints(search.steps)
    for step in range(1, search.steps + 1):
        if rest and bool(here.reached.all()):
            tick(search.steps - step + 1)
            break
        before, here = here, look(_moved(search.method, norm, here, x, radius, size))
        here = _where(before.reached, before, here) if rest else here
        falls += here.loss < before.loss
        best = _where(_is_better(here, best), here, best)
        if step in checks:
            stuck = (falls < 0.75 * (step - since)) | (~halved & (best.loss >= checked.loss))
            size, here = torch.where(stuck, size / 2, size), _where(stuck, best, here)
            falls, halved, since, checked = torch.zeros_like(falls), stuck, step, best
        tick(1)
    return best


def _moved(method: Method, norm: Norm, here: Point, x: Tensor, radius: Tensor, size: Tensor) -> Tensor:
    """The next point: part of the way to the ball's farthest corner, or a step that is projected on the ball."""
    if method == "frank-wolfe":
        corner = x + norm.linear_oracle(-here.slope, x, radius)
        return (here.x + per_sample(size, x) * (corner - here.x)).clamp(0, 1)
    has_room = torch.where(here.slope > 0, here.x > 0, here.x < 1)  # black gets no darker: others are to move
    radius = per_sample(radius.clamp_min(torch.finfo(x.dtype).tiny), x)
    scaled = (here.x - x) / radius - per_sample(size, x) * norm.steepest(here.slope * has_room)
    return (x + radius * norm.project(scaled, 1.0)).clamp(0, 1)


def checkpoints(steps: int) -> set[int]:
    """After which steps the step length may be halved: 22 % of them, then after parts that shrink from 19 % to 6 %."""
    found, last, part = set(), 0.0, 0.22
    while last + part <= 1:
        last += part
        found.add(math.ceil(last * steps))
        part = max(part - 0.03, 0.06)
    return found


def _is_better(one: Point, other: Point) -> Tensor:
    return (one.reached & ~other.reached) | ((one.reached == other.reached) & (one.loss < other.loss))


def _where(choose: Tensor, one: Point, other: Point) -> Point:
    """Image by image, one or the other."""
    return Point(*(torch.where(per_sample(choose, a), a, b) for a, b in zip(one, other, strict=True)))
