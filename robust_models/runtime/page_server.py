"""One local page over HTTP, for this machine only or, with another host, for all who have the address with its key.

Pages of other sites are kept out twice: a request for the page must name a loopback host (else a name that a stranger's
DNS points here would do) or carry the key, and whatever makes the server do something must carry the token that only
our own page knows. Bodies have a known, limited size and a limited time to arrive.
"""

import secrets
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from robust_models.errors import UserError
from robust_models.runtime.config import as_json

LOOPBACK = "127.0.0.1"
_HOSTS = (LOOPBACK, "localhost")
_MOST_CONNECTIONS = 256
_BODY_SECONDS = 30  # for a whole body to arrive
_READ_AT_ONCE = 1 << 16  # bytes
_MOST_IN_MEMORY = 256 << 20  # bytes of all bodies that are being read or worked on
_CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class PageServer(ThreadingHTTPServer):
    """Serves a page at `url` until it is shut down. UserError where the port (0: any) is taken."""

    name = "page"  # in the header with the token, X-Page-Token, and in messages
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted: a whole class may come at once

    def __init__(
        self, handler: type["PageHandler"], *, port: int, host: str = LOOPBACK, key: str | None = None
    ) -> None:
        """key: what the page's address carries where the host is not this machine alone (None: a new one)."""
        self.host = host
        self.key = None if host in _HOSTS else key or secrets.token_urlsafe(9)
        self.token = secrets.token_urlsafe(16)
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._in_memory, self._counting = 0, threading.Lock()
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            raise UserError(
                f"port: {port} on {host} cannot be had ({error.strerror}); give another, or 0 for any free one"
            ) from error

    @property
    def url(self) -> str:
        """Where people find the page."""
        shown = _own_address() if self.host == "0.0.0.0" else self.host
        key = "" if self.key is None else f"?{urlencode({'key': self.key})}"
        return f"http://{shown}:{self.server_address[1]}/{key}"

    def admits(self, host: str, query: str) -> bool:
        """Whether a request with this Host header and query may have the page. Any port: a tunnel may end elsewhere."""
        if self.key is not None:
            given = "".join(parse_qs(query).get("key", []))
            return secrets.compare_digest(given.encode(), self.key.encode())
        name, _, port = host.partition(":")
        return name.lower() in _HOSTS and (port.isdecimal() or not port)

    @contextmanager
    def room_for(self, length: int) -> Iterator[bool]:
        """Whether a body of this length fits into memory beside the others, for as long as the block lasts."""
        with self._counting:
            fits = self._in_memory + length <= _MOST_IN_MEMORY
            self._in_memory += length * fits
        try:
            yield fits
        finally:
            with self._counting:
                self._in_memory -= length * fits

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, as long as there are not too many of them; else it is closed."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_bind(self) -> None:
        """Binds; http.server's own would ask DNS for the machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """Lets in whom the server admits; subclasses give the page, what else can be had, and what can be done."""

    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a silent connection is kept
    has_begun = False  # whether a reply is under way

    def page(self) -> None:
        """Replies with the page."""
        raise NotImplementedError

    def get(self, path: str) -> None:
        """Replies with what is at the path, which is not "/"; here nothing is."""
        self.refuse(HTTPStatus.NOT_FOUND, "nothing here")

    def most_bytes(self, path: str) -> int | None:
        """The most bytes that may be posted to the path; None where nothing can be."""
        raise NotImplementedError

    def post(self, path: str, body: bytes) -> None:
        """Does what is asked at a path for which most_bytes gave a number."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """The page, or what belongs to it. With a key, only the page's address has it: others are unguessable."""
        address = urlsplit(self.path)
        path, needs_key = address.path, self.server.key is not None
        if not (needs_key and path != "/") and not self.server.admits(self.headers.get("Host", ""), address.query):
            where = (
                "the whole address, with its key, is needed" if needs_key else "this page is at http://127.0.0.1 only"
            )
            return self.refuse(HTTPStatus.FORBIDDEN, where)
        return self.page() if path == "/" else self.get(path)

    def do_POST(self) -> None:
        """What the page asks for, with its token; the body is read whole."""
        self.has_begun = False
        if not self._is_our_page():
            again = f"the {self.server.name} was started anew; load the page again"
            return self.refuse(HTTPStatus.FORBIDDEN, again)
        path = urlsplit(self.path).path
        most = self.most_bytes(path)
        if most is None:
            return self.refuse(HTTPStatus.NOT_FOUND, "nothing here")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            return self.refuse(HTTPStatus.LENGTH_REQUIRED, "a body of known length is expected")
        if len(length) > 18 or int(length) > most:
            return self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes")
        with self.server.room_for(int(length)) as fits:
            if not fits:
                return self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too much is being sent at once; try again")
            body = self._read(int(length))
            try:
                return self.post(path, body)
            except (ConnectionError, TimeoutError):
                raise
            except Exception:
                if not self.has_begun:
                    why = f"an error of the {self.server.name}'s own; its terminal says more"
                    self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, why)
                raise  # handle_error prints it

    def _is_our_page(self) -> bool:
        """Whether a request that does something comes from a page of ours: by its Host, its Origin and its token."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.key is None:
            if not self.server.admits(host, "") or (origin is not None and urlsplit(origin).netloc != host):
                return False
        token = self.headers.get(f"X-{self.server.name.title()}-Token", "")
        return secrets.compare_digest(token.encode(), self.server.token.encode())

    def _read(self, length: int) -> bytes:
        """The body; TimeoutError where it does not arrive in time, ConnectionError where it ends too soon."""
        until, parts = time.monotonic() + _BODY_SECONDS, []
        while length:
            self.connection.settimeout(max(0.001, until - time.monotonic()))
            part = self.rfile.read1(min(length, _READ_AT_ONCE))  # pyright: ignore[reportAttributeAccessIssue]
            if not part:
                raise ConnectionAbortedError
            if time.monotonic() > until:
                raise TimeoutError
            parts.append(part)
            length -= len(part)
        self.connection.settimeout(self.timeout)
        return b"".join(parts)

    @property
    def is_gone(self) -> bool:
        """Whether the browser has closed the connection."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Replies with the reason, {"error": ...}, and closes: the body may not have been read."""
        self.close_connection = True
        self.reply_json({"error": reason}, status=status)

    def reply_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Replies with JSON."""
        self.reply(as_json(content).encode(), "application/json", status=status)

    def reply(
        self,
        body: bytes,
        content_type: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
        sources: str = "",
    ) -> None:
        """Replies with the body. sources: what a page may load and run, directives of its policy; else nothing."""
        self.send_head(content_type, status=status, cache=cache, sources=sources, length=len(body))
        self.wfile.write(body)

    def send_head(
        self,
        content_type: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
        sources: str = "",
        length: int | None = None,
    ) -> None:
        """The reply up to its body, which ends, where its length is not known, with the connection."""
        self.close_connection = self.close_connection or length is None
        self.has_begun = True
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Cache-Control": cache,
            "Content-Security-Policy": f"default-src 'none'; {sources}{_CLOSED}",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def version_string(self) -> str:
        """Of the Server header: no versions of Python."""
        return self.server.name

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
