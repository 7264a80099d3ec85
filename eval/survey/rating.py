"""What a rater is shown next, and what becomes of the answer. No word of which image is refined leaves this file."""

import secrets
import unicodedata
from dataclasses import dataclass
from threading import Lock
from typing import Any

from eval.survey.answers import Store
from eval.survey.config import CLASS
from eval.survey.order import Choice, Item, Shown, order
from eval.survey.pairs import Pairs

_LONGEST_NAME = 40  # characters
State = dict[str, Any]


@dataclass(frozen=True)
class View:
    """An item as one rater's page knows it: words drawn by lot, which say nothing."""

    turn: str
    left: str
    right: str


class Rating:
    """A running survey. Every method takes a rater's name in plain form and may be called by several threads.

    A state is {"done", "total"} and, until all is done, {"turn", "question", "left", "right", "ahead"}: the addresses
    of the images to show and of those to fetch ahead.
    """

    def __init__(
        self, store: Store, pairs: Pairs, classes: dict[int, str | None], question: str, checks: float, seed: int
    ) -> None:
        self.store, self.pairs, self.classes = store, pairs, classes
        self.question, self.checks, self.seed = question, checks, seed
        self._orders: dict[str, list[Item]] = {}
        self._views: dict[tuple[str, Item], View] = {}
        self._images: dict[str, tuple[int, Shown]] = {}
        self._lock = Lock()

    def state(self, rater: str) -> State:
        """What the rater is shown now."""
        with self._lock:
            return self._state(rater)

    def answer(self, rater: str, turn: str, choice: Choice, milliseconds: int) -> State:
        """The state after it. Another turn than the one due, as a repeated request has, changes nothing."""
        with self._lock:
            due = self._due(rater)
            if due and self._view(rater, due[0]).turn == turn:
                self.store.add(rater, due[0], choice, milliseconds)
            return self._state(rater)

    def undo(self, rater: str, turn: str | None) -> State:
        """The state with the last answer taken back; turn: the one due (None: all is done), else nothing changes."""
        with self._lock:
            due = self._due(rater)
            if turn == (self._view(rater, due[0]).turn if due else None):
                self.store.take_back(rater)
            return self._state(rater)

    def image(self, word: str) -> bytes | None:
        """The PNG at an address of a state; None where there is none."""
        found = self._images.get(word)
        return None if found is None else self.pairs.png(*found)

    def _state(self, rater: str) -> State:
        due, total = self._due(rater), len(self._order(rater))
        counts = {"done": total - len(due), "total": total}
        if not due:
            return counts
        view = self._view(rater, due[0])
        ahead = [self._view(rater, item) for item in due[1:2]]
        return {
            **counts,
            "turn": view.turn,
            "question": self.question.replace(CLASS, self.classes[due[0].number] or ""),
            "left": view.left,
            "right": view.right,
            "ahead": [word for later in ahead for word in (later.left, later.right)],
        }

    def _due(self, rater: str) -> list[Item]:
        answered = self.store.answered(rater)
        return [item for item in self._order(rater) if (item.kind, item.number) not in answered]

    def _order(self, rater: str) -> list[Item]:
        if rater not in self._orders:
            self._orders[rater] = order(self.seed, rater, self.pairs.numbers, self.checks)
        return self._orders[rater]

    def _view(self, rater: str, item: Item) -> View:
        key = rater, item
        if key not in self._views:
            view = View(*(secrets.token_urlsafe(16) for _ in range(3)))
            self._images[view.left] = item.number, item.left
            self._images[view.right] = item.number, item.right
            self._views[key] = view
        return self._views[key]


def plain_name(text: str) -> str | None:
    """A rater's name as it is stored, so that "Ann " and "ann" are one; None where it is none."""
    if len(text) > 4 * _LONGEST_NAME:
        return None
    name = " ".join(unicodedata.normalize("NFKC", text).split()).casefold()
    return name if 0 < len(name) <= _LONGEST_NAME and name.isprintable() else None
