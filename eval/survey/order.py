"""What each rater is shown, in which order and on which side: a pure function of seed and rater.

Every draw is a hash, not a stream of a random generator, so neither the version of a library nor what other raters do
changes it: a survey goes on anywhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

Side = Literal["left", "right"]
Choice = Literal["left", "right", "tie"]
Shown = Literal["before", "after", "ruined"]
Kind = Literal["pair", "check"]


@dataclass(frozen=True)
class Item:
    """One question: an image before and after refinement, or (an attention check) an image and its ruin."""

    number: int  # of the image in its set
    left: Shown
    right: Shown

    @property
    def kind(self) -> Kind:
        """ "check" where one of the two images is ruined, else "pair"."""
        return "check" if "ruined" in (self.left, self.right) else "pair"

    @property
    def target(self) -> Side:
        """Where the refined image is, of a check the intact one."""
        if self.kind == "check":
            return "right" if self.left == "ruined" else "left"
        return "left" if self.left == "after" else "right"


def draw_numbers(seed: int, count: int, wanted: int | None) -> list[int]:
    """Which of `count` images take part (None: all), ascending."""
    return sorted(_shuffled(range(count), seed, "pairs")[:wanted])


def order(seed: int, rater: str, numbers: Sequence[int], checks: float) -> list[Item]:
    """All items of one rater: each pair once, refined images as often left as right (an odd one by lot), and a share
    of checks, each at a random place of its own stretch."""
    by_side = _shuffled(numbers, seed, "side", rater)
    on_left = set(by_side[: (len(numbers) + _draw(seed, "odd", rater) % 2) // 2])
    items = [
        Item(number, "after", "before") if number in on_left else Item(number, "before", "after")
        for number in _shuffled(numbers, seed, "order", rater)
    ]
    places = _check_places(seed, rater, len(items), checks)
    for place, number in zip(places, _shuffled(numbers, seed, "check", rater), strict=False):
        items.insert(place, _check(seed, rater, number))
    return items


def _check(seed: int, rater: str, number: int) -> Item:
    """Its image is of either set by lot, so that raters do not come to know one of them better."""
    intact: Shown = "after" if _draw(seed, "check set", rater, number) % 2 else "before"
    if _draw(seed, "check side", rater, number) % 2:
        return Item(number, intact, "ruined")
    return Item(number, "ruined", intact)


def _check_places(seed: int, rater: str, num_pairs: int, share: float) -> list[int]:
    """Ascending places among all items; at least one unless share is 0."""
    if share == 0:
        return []
    num_checks = max(1, round(num_pairs * share / (1 - share)))
    bounds = [(num_pairs + num_checks) * i // num_checks for i in range(num_checks + 1)]
    return [start + _draw(seed, "check place", rater, start) % (stop - start) for start, stop in pairwise(bounds)]


def _shuffled(numbers: Iterable[int], *key: object) -> list[int]:
    return sorted(numbers, key=lambda number: (_draw(*key, number), number))


def _draw(*key: object) -> int:
    """A number below 2**64 that depends on all of key."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest())
