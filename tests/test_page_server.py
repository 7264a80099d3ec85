"""The shell of local pages, with real requests: who is let in, what is read, and what slow clients may not do."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from robust_models.runtime import page_server
from robust_models.runtime.page_server import PageHandler, PageServer

MOST = 1000  # bytes


class _EchoServer(PageServer):
    name = "echo"


class _Echo(PageHandler):
    def page(self) -> None:
        self.reply(self.server.token.encode(), "text/html", sources="script-src 'self'; ")

    def most_bytes(self, path: str) -> int | None:
        return {"/echo": MOST, "/gone": MOST}.get(path)

    def post(self, path: str, body: bytes) -> None:
        if body == b"break":
            raise KeyError("a mistake of ours")
        if path == "/echo":
            return self.reply(body, "text/plain")
        until = time.monotonic() + 5
        while not self.is_gone and time.monotonic() < until:
            time.sleep(0.01)
        _Echo.saw_it_go.append(time.monotonic() < until)
        return None

    saw_it_go: list[bool] = []  # noqa: RUF012


@pytest.fixture
def server() -> Iterator[PageServer]:
    with _EchoServer(_Echo, port=0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def post(server: PageServer, body: bytes = b"x", path: str = "/echo", **headers: str) -> tuple[int, bytes]:
    own = {"X-Echo-Token": server.token} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(*server.server_address[:2], timeout=10)) as connection:
        connection.request("POST", path, body, own)
        response = connection.getresponse()
        return response.status, response.read()


def begun(server: PageServer, length: int) -> socket.socket:
    """A connection whose request has come but for its body."""
    connection = socket.create_connection(server.server_address[:2], timeout=10)
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nX-Echo-Token: {server.token}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def test_a_body_comes_back(server):
    assert post(server, b"some bytes") == (200, b"some bytes")
    assert post(server, b"") == (200, b"")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
        ("http://localhost:{port}", 403),
        ("http://127.0.0.1:{port}", 200),
    ],
)
def test_another_origin_is_refused_even_with_the_token(server, origin, status):
    origin = origin.format(port=server.server_address[1])
    assert post(server, Origin=origin)[0] == status


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_another_host_is_refused_even_with_the_token(server, host):
    assert post(server, Host=host)[0] == 403


def test_a_tunnel_may_end_at_another_port(server):
    assert post(server, Host="localhost:9000", Origin="http://localhost:9000")[0] == 200


@pytest.mark.parametrize("length", ["-1", "1e3", "", "٣", "+5", "99999999999999999999999"])
def test_a_length_that_is_no_small_number_is_refused(server, length):
    status, reply = post(server, b"", Content_Length=length.encode("utf-8").decode("latin-1"))
    assert (status, list(json.loads(reply))) == (413 if length[-1:] == "9" else 411, ["error"])


def test_more_than_the_limit_is_refused_before_it_is_read(server):
    assert post(server, b"x" * MOST)[0] == 200
    assert post(server, b"x" * (MOST + 1)) == (413, b'{"error": "at most 1000 bytes"}')


def test_a_mistake_of_ours_is_an_answer_too(server, capsys):
    assert post(server, b"break") == (500, b'{"error": "an error of the echo\'s own; its terminal says more"}')
    told, until = "", time.monotonic() + 10
    while "KeyError: 'a mistake of ours'\n" not in told and time.monotonic() < until:  # printed after the answer
        time.sleep(0.01)
        told += capsys.readouterr().err
    assert "KeyError: 'a mistake of ours'\n" in told
    assert post(server, b"x")[0] == 200


def test_more_than_fits_into_memory_is_refused(server, monkeypatch):
    monkeypatch.setattr(page_server, "_MOST_IN_MEMORY", 150)
    with closing(begun(server, 100)) as slow:
        wait_until_held(server, 100)
        assert post(server, b"x" * 100)[0] == 503
        assert post(server, b"x" * 50)[0] == 200
        slow.sendall(b"x" * 100)
        assert slow.recv(1)
    wait_until_held(server, 0)  # a reply goes out before its thread lets go of the body
    assert post(server, b"x" * 100)[0] == 200


def wait_until_held(server, length):
    """Until the server holds bodies of so many bytes in all."""
    deadline = time.monotonic() + 30
    while server._in_memory != length:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/", "/elsewhere", "/../echo", "/%65cho"])
def test_nothing_can_be_posted_elsewhere(server, path):
    assert post(server, path=path)[0] == 404


def test_the_policy_lets_nothing_in_but_what_the_page_names(server):
    with closing(http.client.HTTPConnection(*server.server_address[:2], timeout=10)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        connection.request("GET", "/elsewhere")
        response = connection.getresponse()
        response.read()
        assert "script-src" not in response.headers["Content-Security-Policy"]
    assert not re.search("Python|http", str(response.headers["Server"]))


def test_a_body_that_drips_in_is_given_up(server, monkeypatch):
    monkeypatch.setattr(page_server, "_BODY_SECONDS", 0.3)
    started = time.monotonic()
    with closing(begun(server, 100)) as slow, suppress(ConnectionError):
        slow.settimeout(0.1)
        while time.monotonic() < started + 5:  # the whole would take 10 s
            slow.sendall(b"x")
            with suppress(TimeoutError):
                assert slow.recv(1) == b""
                break
    assert 0.3 <= time.monotonic() - started < 5


def test_two_hundred_silent_connections_keep_nobody_out(server):
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(closing(begun(server, 10)))
        assert post(server, b"still served") == (200, b"still served")


def test_too_many_connections_are_closed_and_make_room_again(server):
    with ExitStack() as stack:
        for _ in range(page_server._MOST_CONNECTIONS):
            stack.enter_context(closing(begun(server, 10)))
        time.sleep(0.2)  # they have been accepted
        with pytest.raises(ConnectionError):
            post(server)
    assert any(is_served(server) for _ in range(100))


def is_served(server: PageServer) -> bool:
    try:
        return post(server)[0] == 200
    except ConnectionError:
        time.sleep(0.05)
        return False


def test_a_handler_sees_that_the_browser_has_gone(server):
    _Echo.saw_it_go.clear()
    connection = socket.create_connection(server.server_address[:2], timeout=10)
    head = f"POST /gone HTTP/1.1\r\nHost: localhost\r\nX-Echo-Token: {server.token}\r\nContent-Length: 1\r\n\r\nx"
    connection.sendall(head.encode())
    time.sleep(0.1)
    assert _Echo.saw_it_go == []
    connection.close()
    until = time.monotonic() + 5
    while not _Echo.saw_it_go and time.monotonic() < until:
        time.sleep(0.01)
    assert _Echo.saw_it_go == [True]
