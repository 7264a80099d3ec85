"""The survey over HTTP: the page, its images by unguessable words that name no files, and the raters' answers."""

import secrets
import sqlite3
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from eval.survey.rating import Rating, State, plain_name
from robust_models.runtime.page_server import LOOPBACK, PageHandler, PageServer

_MAX_BODY = 4096  # bytes
_DAY_MS = 24 * 60 * 60 * 1000
_STRICT = ConfigDict(extra="forbid", strict=True)


def _rater(text: str) -> str:
    name = plain_name(text)
    if name is None:
        raise ValueError("a name has 1 to 40 characters")
    return name


Rater = Annotated[str, AfterValidator(_rater)]
Word = Annotated[str, Field(max_length=64)]


@dataclass(frozen=True, config=_STRICT)
class _Next:
    rater: Rater

    def act(self, rating: Rating) -> State:
        return rating.state(self.rater)


@dataclass(frozen=True, config=_STRICT)
class _Answer:
    rater: Rater
    turn: Word
    choice: Literal["left", "right", "tie"]
    milliseconds: Annotated[int, Field(ge=0, le=_DAY_MS)]

    def act(self, rating: Rating) -> State:
        return rating.answer(self.rater, self.turn, self.choice, self.milliseconds)


@dataclass(frozen=True, config=_STRICT)
class _Undo:
    rater: Rater
    turn: Word | None

    def act(self, rating: Rating) -> State:
        return rating.undo(self.rater, self.turn)


_POSTS: dict[str, TypeAdapter[Any]] = {
    "/next": TypeAdapter(_Next),
    "/answer": TypeAdapter(_Answer),
    "/undo": TypeAdapter(_Undo),
}


class SurveyServer(PageServer):
    """Serves a survey at `url` until it is shut down. UserError where the port (0: any) is taken."""

    name = "survey"

    def __init__(self, rating: Rating, *, ties: bool, port: int, host: str = LOOPBACK, key: str | None = None) -> None:
        """key: what the page's address carries where the host is not this machine alone (None: a new one)."""
        self.rating, self.ties = rating, ties
        self._page = _page()
        super().__init__(_Handler, port=port, host=host, key=key)

    @property
    def reach(self) -> str:
        """Who can come, in words."""
        if self.key is None:
            return "for raters on this machine"
        return (
            "for everyone who can reach this machine and has the whole address: it opens this page and its images, "
            "nothing else, unencrypted"
        )

    def page(self, nonce: str) -> bytes:
        """The page (HTML); nonce: what its script and style carry, so that the browser runs no others."""
        height, width = self.rating.pairs.size
        checks = self.rating.checks > 0
        shown = {"token": self.token, "ties": self.ties, "checks": checks, "height": height, "width": width}
        return self._page(nonce=nonce, **shown).encode()


class _Handler(PageHandler):
    server: SurveyServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; connect-src 'self'; "
        self.reply(self.server.page(nonce), "text/html; charset=utf-8", sources=own)

    def get(self, path: str) -> None:
        folder, _, word = path.rpartition("/")
        image = self.server.rating.image(word) if folder == "/image" else None
        if image is None:
            return self.refuse(HTTPStatus.NOT_FOUND, "nothing here")
        return self.reply(image, "image/png", cache="private, max-age=3600")

    def most_bytes(self, path: str) -> int | None:
        return _MAX_BODY if path in _POSTS else None

    def post(self, path: str, body: bytes) -> None:
        try:
            posted = _POSTS[path].validate_json(body)
        except ValidationError as error:
            return self.refuse(HTTPStatus.BAD_REQUEST, error.errors()[0]["msg"].removeprefix("Value error, "))
        if isinstance(posted, _Answer) and posted.choice == "tie" and not self.server.ties:
            return self.refuse(HTTPStatus.BAD_REQUEST, "this survey has no ties")
        try:
            state = posted.act(self.server.rating)
        except (sqlite3.Error, OSError) as error:
            print(f"survey: an answer could not be kept ({error}); make room, the page tries again", file=sys.stderr)
            return self.refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"the answer could not be kept ({error}); try again")
        return self.reply_json(state)


def _page() -> Callable[..., str]:
    """The template, to be filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2").render
