"""The balls of a measurement: as a person writes them, or from what the classifier was trained to withstand."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from pydantic_core import PydanticCustomError

from eval.robust.attacks import LIBRARIES
from eval.robust.attacks.autoattack import ENSEMBLES, NORMS
from eval.robust.stages import Ball
from robust_models import UserError
from robust_models.threat import ThreatModel, check_ball

AUTO = "auto"
OWN = "own"
# The union of three balls that papers on several norms measure for CIFAR-10, d = 3 * 32 * 32 pixels. Maini et al. 2020
# (arXiv:1909.04068) and Croce and Hein 2022 (arXiv:2105.12508); pixels in [0,1].
USUAL = {"l2": 0.5, "linf": 8 / 255, "l1": 12.0}
USUAL_PIXELS = 3 * 32 * 32
GROWTH = {"l2": 0.5, "linf": 0.0, "l1": 1.0}  # the length of an equal change of every pixel grows as d to this power


def parse_threats(value: Any) -> Any:
    """ "l2:0.5,linf:8/255" as ("l2:0.5", "linf:8/255"); "auto" and "own" as they are; a list is taken too."""
    if value is None or value in (AUTO, OWN):
        return value
    several = value.split(",") if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not several or not all(isinstance(one, str) for one in several):
        raise PydanticCustomError("threats", f"input should be NORM:EPS, several with commas, {AUTO} or {OWN}")
    for one in several:
        _ball(one)
    return tuple(one.strip() for one in several)


def _ball(text: str) -> Ball:
    norm, _, eps = text.strip().partition(":")
    try:
        radius = float(Fraction(eps) if "/" in eps else eps)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"threats: {text!r} is not NORM:EPS, as l2:0.5 or linf:8/255 are") from None
    if math.isnan(radius):
        raise ValueError(f"threats: {text!r} has no radius")
    try:
        check_ball(norm, radius)
    except ValueError as error:
        raise ValueError(f"threats: {text!r}: {error}") from error
    return Ball(norm, radius)  # type: ignore[arg-type]  (checked)


def find_balls(
    threats: str | Sequence[str], *, trained: ThreatModel | None, num_pixels: int, attack: str
) -> tuple[list[Ball], str]:
    """The balls, those of one norm together and growing; and in words where they come from ("" where they were given).

    "own": the classifier's threat model. "auto": that, and its like in the other norms that the attack has; for a
    classifier without one, the usual three. num_pixels: channels * height * width of an image. UserError for "own" of a
    classifier that was not trained to withstand anything.
    """
    if not isinstance(threats, str):
        return in_order(map(_ball, threats)), ""
    if trained is not None and trained.eps == 0:  # trained without attack
        trained = None
    if threats == OWN:
        if trained is None:
            raise UserError(f"threats: the checkpoint states no threat model; give --eps, or --threats {AUTO}")
        return [_ball(f"{trained.norm}:{trained.eps}")], "the checkpoint's threat model"
    if trained is not None and trained.norm not in USUAL:
        return [_ball(f"{trained.norm}:{trained.eps}")], "the checkpoint's threat model; no usual radius is like it"
    found = [Ball(norm, eps) for norm, eps in like(trained, num_pixels).items() if norm in _norms_of(attack, trained)]  # type: ignore[arg-type]
    if trained is None:
        return found, "the usual ones for images of this size; the checkpoint states no threat model"
    return found, f"the checkpoint's threat model, {trained}, and its like in other norms"


def like(trained: ThreatModel | None, num_pixels: int) -> dict[str, float]:
    """Radii of the usual three norms: all scaled so that the one of the trained norm is the trained eps.

    From CIFAR-10's images to others each grows as an equal change of every pixel does: at 224 px l2 3.5 and l1 588
    beside linf 8/255, where papers halve all three.
    """
    usual = {norm: eps * (num_pixels / USUAL_PIXELS) ** GROWTH[norm] for norm, eps in USUAL.items()}
    if trained is None:
        return usual
    scaled = {norm: trained.eps / usual[trained.norm] * eps for norm, eps in usual.items()}
    first = {trained.norm: trained.eps}
    return first | {norm: eps for norm, eps in scaled.items() if norm not in first}


def _norms_of(attack: str, trained: ThreatModel | None) -> Iterable[str]:
    library = attack.partition(":")[0]
    if library in LIBRARIES:  # a class of theirs is made for one norm, usually
        return ("l2",) if trained is None else (trained.norm,)
    return NORMS if attack in ENSEMBLES else USUAL


def in_order(balls: Iterable[Ball]) -> list[Ball]:
    """Each once: norms in the order of their first ball, radii growing."""
    given = list(balls)
    norms = list(dict.fromkeys(ball.norm for ball in given))
    return sorted(set(given), key=lambda ball: (norms.index(ball.norm), ball.eps))
