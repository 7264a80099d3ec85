"""The transportation problem: N images to C classes of so many places each, at the highest total score.

Its dual has one price per class and sends every image to the class of highest score less price. Prices that nearly
fill the places are cheap to find (entropic transport); the images still too many are then moved one shortest path of
classes at a time (successive shortest paths; Ahuja, Magnanti & Orlin 1993, ch. 9), which keeps the assignment optimal
for the counts it has at every moment. So the result is an exact optimum up to float64 rounding, whatever the prices
began as; they only decide how long it takes.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

_CHUNK = 1 << 18  # scores worked on at once: they fit the cache, and bound the memory
_TEMPERATURES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # of the entropic start, in nats
_SWEEPS = 6  # over all images, at each temperature


def transport(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """scores [N,C] float, places [C] int with sum N -> the class of each image, int64 [N].

    Scores are finite or -inf, which is taken only where the places leave no other choice. Memory beyond the scores is
    about C^2 numbers and a few per image. Sums are taken in a fixed order: the number of threads changes nothing.
    """
    floor = _floor(scores)
    assignment = _Assignment(scores, floor, places, _opening_prices(scores, floor, places))
    assignment.solve()
    return assignment.y


class _Assignment:
    """Classes y [N] of the images, optimal for the counts they have, on their way to the wanted counts.

    prices [C] certify it: each image's score less price is largest at its class. loss [C,C] is what it costs at least
    to move one image of class a (row) to class b, so that loss[a,b] - prices[a] + prices[b] >= 0 everywhere.
    """

    def __init__(self, scores: np.ndarray, floor: float, places: np.ndarray, prices: np.ndarray) -> None:
        self.scores = scores
        self.floor = floor
        self.prices = prices
        self.classes = np.arange(len(places))
        self.y = np.concatenate([(rows - prices).argmax(axis=1) for rows in chunks(scores, floor)])
        self.surplus = np.bincount(self.y, minlength=len(places)) - places
        self.loss = np.stack([self._least_loss(self._members(a), a, self.classes) for a in range(len(places))])

    def solve(self) -> None:
        """Moves images until every class has as many as it has places."""
        while (self.surplus > 0).any():
            self._move(self._cheapest_path())

    def _cheapest_path(self) -> list[int]:
        """Classes from one with a surplus to one that lacks images (Dijkstra); prices that make all its edges tight."""
        distance = np.where(self.surplus > 0, 0.0, np.inf)
        pending = distance.copy()
        before = np.full(len(distance), -1)
        while True:
            a = int(pending.argmin())
            if self.surplus[a] < 0:
                break
            pending[a] = np.inf
            through = distance[a] + (self.loss[a] - self.prices[a] + self.prices).clip(min=0)
            nearer = through < distance
            distance[nearer] = pending[nearer] = through[nearer]
            before[nearer] = a
        self.prices += (distance[a] - distance).clip(min=0)
        path = [a]
        while before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        return path[::-1]

    def _move(self, path: list[int]) -> None:
        """Moves along each edge of the path the image that loses least, or as many as tie there on every edge."""
        edges = list(pairwise(path))
        ties = [self._ties(a, b) for a, b in edges]
        k = min(self.surplus[path[0]], -self.surplus[path[-1]], *map(len, ties))
        moved = [images[:k] for images in ties]
        for (_, b), images in zip(edges, moved, strict=True):
            self.y[images] = b
        for (a, b), images in zip(edges, moved, strict=True):
            stale = np.flatnonzero(self._least_loss(images, a, self.classes) <= self.loss[a])
            self.loss[a, stale] = self._least_loss(self._members(a), a, stale)
            self.loss[b] = np.minimum(self.loss[b], self._least_loss(images, b, self.classes))
        self.surplus[path[0]] -= k
        self.surplus[path[-1]] += k

    def _members(self, a: int) -> np.ndarray:
        return np.flatnonzero(self.y == a)

    def _ties(self, a: int, b: int) -> np.ndarray:
        images = self._members(a)
        return images[self._losses(images, a, np.array([b]))[:, 0] == self.loss[a, b]]

    def _least_loss(self, images: np.ndarray, a: int, classes: np.ndarray) -> np.ndarray:
        """Column minima of _losses, infinite where there are no images."""
        least = np.full(len(classes), np.inf)
        step = max(1, _CHUNK // max(1, len(classes)))
        for start in range(0, len(images), step):
            least = np.minimum(least, self._losses(images[start : start + step], a, classes).min(axis=0))
        return least

    def _losses(self, images: np.ndarray, a: int, classes: np.ndarray) -> np.ndarray:
        """What each image of class a loses in each other class, float64 [images, classes]."""
        own = np.maximum(self.scores[images, a], self.floor, dtype=np.float64)
        other = np.maximum(self.scores[images[:, None], classes], self.floor, dtype=np.float64)
        return own[:, None] - other


def _opening_prices(scores: np.ndarray, floor: float, places: np.ndarray) -> np.ndarray:
    """Prices [C] that nearly fill the places; infinite for classes that have none.

    Entropic transport (Cuturi 2013, arXiv:1306.0895), slowly cooled: the first temperatures suit overconfident scores.
    """
    has_places = places > 0
    prices = np.where(has_places, 0.0, np.inf)
    for temperature in _TEMPERATURES:
        for _ in range(_SWEEPS):
            expected = np.zeros(len(places))
            for rows in chunks(scores, floor):
                share = (rows - prices.astype(np.float32)) / np.float32(temperature)
                share -= share.max(axis=1, keepdims=True)
                np.exp(share, out=share)
                share /= share.sum(axis=1, keepdims=True)
                expected += share.sum(axis=0)
            prices[has_places] += temperature * np.log(expected[has_places].clip(min=1e-30) / places[has_places])
    return prices


def chunks(scores: np.ndarray, floor: float = -np.inf) -> Iterator[np.ndarray]:
    """Consecutive rows of scores [N,C], none below the floor."""
    step = max(1, _CHUNK // scores.shape[1])
    for start in range(0, len(scores), step):
        yield np.maximum(scores[start : start + step], scores.dtype.type(floor))


def _floor(scores: np.ndarray) -> float:
    """What stands for a score of -inf: so low that no cycle of classes makes up for a needless one."""
    low, high = np.inf, -np.inf
    for rows in chunks(scores):
        high = max(high, float(rows.max()))
        low = min(low, float(rows.min(initial=np.inf, where=rows > -np.inf)))
    if low == np.inf:  # -inf throughout: every assignment is as good
        return 0.0
    return float(np.float32(low - scores.shape[1] * (high - low + 1)))
