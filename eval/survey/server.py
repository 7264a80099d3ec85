"""The survey over HTTP: for this machine only or, with another host, for all who have the address with its key.

Pages of other sites are kept out twice: a request for the page must name a loopback host (else a name that a stranger's
DNS points here would do) or carry the key, and whatever stores something must carry the word that only our own page
knows. Addresses of images are unguessable words; they name no files.
"""

import json
import secrets
import socket
import socketserver
import sqlite3
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from eval.survey.rating import Rating, State, plain_name
from robust_models.errors import UserError

LOOPBACK = "127.0.0.1"
TOKEN_HEADER = "X-Survey-Token"
_HOSTS = (LOOPBACK, "localhost")
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


class SurveyServer(ThreadingHTTPServer):
    """Serves a survey at `url` until it is shut down. UserError where the port (0: any) is taken."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted: a class of raters begins at once

    def __init__(self, rating: Rating, *, ties: bool, port: int, host: str = LOOPBACK, key: str | None = None) -> None:
        """key: what the page's address carries where the host is not this machine alone (None: a new one)."""
        self.rating, self.ties, self.host = rating, ties, host
        self.key = None if host in _HOSTS else key or secrets.token_urlsafe(9)
        self.token = secrets.token_urlsafe(16)
        self._page = _page()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(
                f"port: {port} on {host} cannot be had ({error.strerror}); give another, or 0 for any free one"
            ) from error

    @property
    def url(self) -> str:
        """Where raters find the page."""
        shown = _own_address() if self.host == "0.0.0.0" else self.host
        key = "" if self.key is None else f"?{urlencode({'key': self.key})}"
        return f"http://{shown}:{self.server_address[1]}/{key}"

    @property
    def reach(self) -> str:
        """Who can come, in words."""
        if self.key is None:
            return "for raters on this machine"
        return (
            "for everyone who can reach this machine and has the whole address: it opens this page and its images, "
            "nothing else, unencrypted"
        )

    def admits(self, host: str, query: str) -> bool:
        """Whether a request with this Host header and query may have the page. Any port: a tunnel may end elsewhere."""
        if self.key is not None:
            given = "".join(parse_qs(query).get("key", []))
            return secrets.compare_digest(given.encode(), self.key.encode())
        name, _, port = host.partition(":")
        return name.lower() in _HOSTS and (port.isdecimal() or not port)

    def page(self, nonce: str) -> bytes:
        """The page (HTML); nonce: what its script and style carry, so that the browser runs no others."""
        height, width = self.rating.pairs.size
        checks = self.rating.checks > 0
        shown = {"token": self.token, "ties": self.ties, "checks": checks, "height": height, "width": width}
        return self._page(nonce=nonce, **shown).encode()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # http.server's own asks DNS for the machine's name
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a page that was closed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: SurveyServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a silent connection is kept

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, needs_key = address.path, self.server.key is not None
        if not (needs_key and path != "/") and not self.server.admits(self.headers.get("Host", ""), address.query):
            where = (
                "the whole address, with its key, is needed" if needs_key else "this page is at http://127.0.0.1 only"
            )
            return self._refuse(HTTPStatus.FORBIDDEN, where)
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            return self._reply(self.server.page(nonce), "text/html; charset=utf-8", nonce=nonce)
        folder, _, word = path.rpartition("/")
        image = self.server.rating.image(word) if folder == "/image" else None
        if image is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "nothing here")
        return self._reply(image, "image/png", cache="private, max-age=3600")

    def do_POST(self) -> None:
        own_page = self.server.key is not None or self.server.admits(self.headers.get("Host", ""), "")
        if not own_page or not secrets.compare_digest(
            self.headers.get(TOKEN_HEADER, "").encode(), self.server.token.encode()
        ):
            return self._refuse(HTTPStatus.FORBIDDEN, "the survey was started anew; load the page again")
        adapter = _POSTS.get(urlsplit(self.path).path)
        if adapter is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "nothing here")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "a body of known length is expected")
        if int(length) > _MAX_BODY:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY} bytes")
        try:
            posted = adapter.validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, error.errors()[0]["msg"].removeprefix("Value error, "))
        if isinstance(posted, _Answer) and posted.choice == "tie" and not self.server.ties:
            return self._refuse(HTTPStatus.BAD_REQUEST, "this survey has no ties")
        try:
            state = posted.act(self.server.rating)
        except (sqlite3.Error, OSError) as error:
            print(f"survey: an answer could not be kept ({error}); make room, the page tries again", file=sys.stderr)
            return self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"the answer could not be kept ({error}); try again")
        return self._reply(json.dumps(state).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # the body may not have been read
        self._reply(json.dumps({"error": reason}).encode(), "application/json", status=status)

    def _reply(
        self,
        body: bytes,
        content_type: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
        nonce: str | None = None,
    ) -> None:
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; connect-src 'self'; "
        policy = (
            f"default-src 'none'; {own if nonce else ''}base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": cache,
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "survey"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are no news."""


def _own_address() -> str:
    """This machine's address in its network; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return LOOPBACK


def _page() -> Callable[..., str]:
    """The template, to be filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2").render
