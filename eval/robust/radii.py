"""One radius of a ball, or several, as a person writes them."""

import math
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def parse_radii(value: Any) -> float | tuple[float, ...]:
    """A number, "8/255", or several as a list or as text with commas: "2/255,4/255"."""
    several = value.split(",") if isinstance(value, str) and "," in value else value
    if isinstance(several, list | tuple):
        return tuple(_radius(one) for one in several)
    return _radius(several)


def _radius(value: Any) -> float:
    try:
        radius = math.nan if isinstance(value, bool) else float(Fraction(value) if _is_fraction(value) else value)
    except (ValueError, TypeError, ZeroDivisionError):
        radius = math.nan
    if not math.isfinite(radius):
        raise PydanticCustomError("radius", "input should be a number, or several with commas between them")
    if radius < 0:
        raise PydanticCustomError("radius", "input should be greater than or equal to 0")
    return radius


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


Radii = Annotated[float | tuple[float, ...], BeforeValidator(parse_radii)]
