"""Survey over HTTP, with real requests: sessions, blindness, and who is kept out."""

import errno
import http.client
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.survey.answers import Store
from eval.survey.config import SurveyConfig
from eval.survey.order import order
from eval.survey.serve import prepare
from eval.survey.server import SurveyServer
from robust_models import UserError
from robust_models.runtime.config import resolve
from tests.tiny import fill, tiny_pixels

SEED, PAIRS, CHECKS = 5, 9, 0.1
TOTAL = PAIRS + 1


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """An .npz before, a folder of JPEG files after: formats that would tell, were they sent as they are."""
    root = tmp_path_factory.mktemp("sets")
    np.savez(root / "before.npz", arr_0=tiny_pixels(PAIRS, 0)[0])
    (root / "after").mkdir()
    for i, pixels in enumerate(tiny_pixels(PAIRS, 1)[0]):
        Image.fromarray(pixels).save(root / "after" / f"refined_{i}.jpg")
    return root


@pytest.fixture
def config(sets, tmp_path) -> SurveyConfig:
    paths = {"before": sets / "before.npz", "after": sets / "after", "out": tmp_path / "answers.db"}
    return SurveyConfig(**paths, seed=SEED, checks=CHECKS, port=0)


@contextmanager
def served(config: SurveyConfig) -> Iterator[SurveyServer]:
    where = {"host": config.host, "port": config.port, "key": config.token}
    with SurveyServer(prepare(config), ties=config.ties, **where) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(config) -> Iterator[SurveyServer]:
    with served(config) as running:
        yield running


Reply = tuple[int, dict[str, str], bytes]


def send(
    server: SurveyServer, method: str, path: str, body: bytes | None = None, at: str = "127.0.0.1", **headers: str
) -> Reply:
    with closing(http.client.HTTPConnection(at, server.server_address[1], timeout=10)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


class Rater:
    """What the page's script does."""

    def __init__(self, server: SurveyServer, name: str) -> None:
        self.server, self.name = server, name
        page = send(server, "GET", "/")[2].decode()
        found = re.search(r'data-token="([^"]+)"', page)
        assert found is not None
        self.token = found[1]

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        content = json.dumps({"rater": self.name, **body}).encode()
        status, _, reply = send(self.server, "POST", path, content, X_Survey_Token=self.token)
        assert status == 200, reply
        return json.loads(reply)

    def next(self) -> dict[str, Any]:
        return self.post("/next")

    def answer(self, state: dict[str, Any], choice: str, milliseconds: int = 700) -> dict[str, Any]:
        return self.post("/answer", turn=state["turn"], choice=choice, milliseconds=milliseconds)

    def undo(self, state: dict[str, Any]) -> dict[str, Any]:
        return self.post("/undo", turn=state.get("turn"))


def rows(config: SurveyConfig) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(config.out)) as connection:
        columns = "rater, number, kind, target, choice, milliseconds, time"
        return connection.execute(f"SELECT {columns} FROM answers ORDER BY id").fetchall()


# ------------------------------------------------------------------------------------------------------------ sessions


def test_a_whole_session(server, config):
    ann = Rater(server, "Ann")
    state, choices = ann.next(), ["left", "right", "tie"] * 4
    for done in range(TOTAL):
        assert (state["done"], state["total"]) == (done, TOTAL)
        assert state["question"] == "Which image looks more real?"
        state = ann.answer(state, choices[done], 100 + done)
    assert state == {"done": TOTAL, "total": TOTAL}
    items = order(SEED, "ann", range(PAIRS), CHECKS)
    expected = [("ann", item.number, item.kind, item.target, choices[i], 100 + i) for i, item in enumerate(items)]
    found = rows(config)
    assert [row[:-1] for row in found] == expected
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", row[-1]) for row in found)


def test_shown_is_what_is_recorded(server):
    """The image on the target side is the refined one, of a check the intact one."""
    ann, pairs = Rater(server, "ann"), server.rating.pairs
    state = ann.next()
    for item in order(SEED, "ann", range(PAIRS), CHECKS):
        for side in ("left", "right"):
            _, _, body = send(server, "GET", f"/image/{state[side]}")
            assert body == pairs.png(item.number, getattr(item, side))
        expected = pairs.png(item.number, "after") if item.kind == "pair" else None
        shown = send(server, "GET", f"/image/{state[item.target]}")[2]
        assert shown == expected if expected else shown != pairs.png(item.number, "ruined")
        state = ann.answer(state, "left")


def test_an_answer_is_on_disk_before_the_page_moves_on_and_a_new_server_resumes(config):
    with served(config) as first:
        ann = Rater(first, "ann")
        state = ann.next()
        for done in range(4):
            state = ann.answer(state, "right")
            assert len(rows(config)) == done + 1
        due = first.rating.image(state["left"]), first.rating.image(state["right"])
    with served(config) as second:
        again = Rater(second, "ANN ")
        state = again.next()
        assert state["done"] == 4
        assert (second.rating.image(state["left"]), second.rating.image(state["right"])) == due
        assert again.token != ann.token


def test_raters_at_the_same_time_do_not_mix(server, config):
    def whole_session(name: str) -> None:
        rater = Rater(server, name)
        state = rater.next()
        while "turn" in state:
            state = rater.answer(state, "left" if name == "ann" else "right")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(whole_session, ("ann", "bob", "cy")))
    found = rows(config)
    assert len(found) == 3 * TOTAL
    for name in ("ann", "bob", "cy"):
        own = [row for row in found if row[0] == name]
        assert [(row[1], row[2]) for row in own] == [
            (item.number, item.kind) for item in order(SEED, name, range(PAIRS), CHECKS)
        ]
        assert {row[4] for row in own} == {"left" if name == "ann" else "right"}


def test_repeated_requests_change_nothing(server, config):
    ann = Rater(server, "ann")
    first = ann.next()
    second = ann.answer(first, "left")
    assert ann.answer(first, "right") == second == ann.next()
    with ThreadPoolExecutor(8) as pool:  # a double click, and retries beside it
        states = list(pool.map(lambda _: ann.answer(second, "tie"), range(8)))
    assert {state["done"] for state in states} == {2}
    assert [row[4] for row in rows(config)] == ["left", "tie"]


def test_undo(server, config):
    ann = Rater(server, "ann")
    first = ann.next()
    assert ann.undo(first) == first  # nothing to take back
    second = ann.answer(first, "left")
    assert ann.undo(second) == first
    assert ann.undo(second) == first  # the same request again
    assert rows(config) == []
    state = ann.answer(first, "right")
    assert [row[4] for row in rows(config)] == ["right"]
    while "turn" in state:
        last, state = state, ann.answer(state, "tie")
    assert ann.undo(state) == last
    assert len(rows(config)) == TOTAL - 1


def test_one_raters_turn_is_no_others(server, config):
    ann, bob = Rater(server, "ann"), Rater(server, "bob")
    assert bob.answer(ann.next(), "left")["done"] == 0
    assert rows(config) == []


def test_the_question_names_the_class(sets, tmp_path, config):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(["cat", "sea <lion>", "dog"] * 3))
    named = SurveyConfig(**{**vars(config), "labels": labels, "show_class": True})
    with served(named) as running:
        state = Rater(running, "ann").next()
        number = order(SEED, "ann", range(PAIRS), CHECKS)[0].number
        assert state["question"] == f"Which looks more like a real {['cat', 'sea <lion>', 'dog'][number % 3]}?"


# ----------------------------------------------------------------------------------------------------------- blindness


def test_nothing_that_is_sent_tells_which_image_is_refined(server, sets):
    """All that a rater's page receives is alike for both images, but for the pixels."""
    ann, everything = Rater(server, "ann"), []
    state = ann.next()
    while "turn" in state:
        images = {side: send(server, "GET", f"/image/{state[side]}") for side in ("left", "right")}
        heads = [{key: value for key, value in images[side][1].items() if key != "Date"} for side in images]
        assert heads[0] == heads[1]
        for _, _, body in images.values():
            kinds = re.findall(rb"(IHDR|IDAT|IEND|tEXt|iTXt|zTXt|eXIf|tIME|iCCP|gAMA|pHYs)", body)
            assert kinds == [b"IHDR", b"IDAT", b"IEND"]
        everything.append(json.dumps(state) + str(heads))
        state = ann.answer(state, "left")
    everything.append(send(server, "GET", "/?rater=ann")[2].decode())
    text = " ".join(everything).lower()
    for word in ("before", "after", "refined", "ruined", "target", "check", ".npz", ".jpg", str(sets).lower()):
        assert not re.search(rf"(?<![a-z-]){re.escape(word)}(?![a-z])", text), word


def test_words_are_drawn_by_lot(config):
    """Addresses of the same images differ between raters and runs, so none can be derived or compared."""
    seen: list[str] = []
    for _ in range(2):
        with served(config) as running:
            for name in ("ann", "bob"):
                state = Rater(running, name).next()
                seen += [state["turn"], state["left"], state["right"], *state["ahead"]]
    assert len(set(seen)) == len(seen) == 20
    assert all(re.fullmatch(r"[\w-]{22}", word) for word in seen)


# ------------------------------------------------------------------------------------------------------ who is kept out


def test_it_listens_on_loopback_only(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost:x"]
)
def test_other_hosts_are_refused(server, host):
    ann = Rater(server, "ann")
    word = ann.next()["left"]
    for method, path in (("GET", "/"), ("GET", f"/image/{word}"), ("POST", "/next")):
        status, _, body = send(server, method, path, b'{"rater": "ann"}', Host=host, X_Survey_Token=ann.token)
        assert status == 403
        assert ann.token.encode() not in body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1234"])
def test_loopback_names_and_tunnels_are_served(server, host):
    assert send(server, "GET", "/", Host=host)[0] == 200


@pytest.mark.parametrize("token", [None, "", "x", "\xfc"])
def test_posts_without_the_token_are_refused(server, config, token):
    turn = Rater(server, "ann").next()["turn"]
    body = json.dumps({"rater": "ann", "turn": turn, "choice": "left", "milliseconds": 1}).encode()
    headers = {} if token is None else {"X_Survey_Token": token}
    status, _, reply = send(server, "POST", "/answer", body, **headers)
    assert status == 403
    assert "load the page again" in json.loads(reply)["error"]
    assert rows(config) == []


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        (
            "/answer",
            b'{"rater": "ann", "turn": "x", "choice": "up", "milliseconds": 1}',
            400,
            "'left', 'right' or 'tie'",
        ),
        ("/answer", b'{"rater": "ann", "turn": "x", "choice": "left", "milliseconds": -1}', 400, "greater than"),
        ("/answer", b'{"rater": "ann", "turn": "x", "choice": "left", "milliseconds": "1"}', 400, "integer"),
        ("/answer", b'{"rater": "ann", "turn": "x", "choice": "left"}', 400, "required"),
        ("/next", b'{"rater": "  "}', 400, "a name has 1 to 40 characters"),
        ("/next", b'{"rater": "ann", "admin": true}', 400, "Unexpected"),
        ("/next", b"{", 400, "JSON"),
        ("/next", b"\xff", 400, "JSON"),
        ("/next", b'"' + b"x" * 5000 + b'"', 413, "at most 4096 bytes"),
        ("/elsewhere", b"{}", 404, "nothing here"),
        ("/image/x", b"{}", 404, "nothing here"),
    ],
)
def test_bad_posts(server, config, path, body, status, reason):
    token = Rater(server, "ann").token
    found, headers, reply = send(server, "POST", path, body, X_Survey_Token=token)
    assert found == status
    assert reason in json.loads(reply)["error"]
    assert headers["Connection"] == "close"
    assert rows(config) == []


def test_a_post_of_unknown_length_is_refused(server):
    headers = {"X_Survey_Token": Rater(server, "ann").token, "Content_Length": "many"}
    assert send(server, "POST", "/next", b"", **headers)[0] == 411


def test_a_tie_where_there_are_none_is_refused(config):
    with served(SurveyConfig(**{**vars(config), "ties": False})) as running:
        ann = Rater(running, "ann")
        body = {"rater": "ann", "turn": ann.next()["turn"], "choice": "tie", "milliseconds": 1}
        reply = send(running, "POST", "/answer", json.dumps(body).encode(), X_Survey_Token=ann.token)
        assert reply[0] == 400
        assert 'id="tie"' not in send(running, "GET", "/")[2].decode()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/image/../../etc/passwd", "/image/", "/image", "/image/%2e%2e/x", "/page.html.j2"]
)
def test_addresses_are_no_files(server, path):
    assert send(server, "GET", path)[0] == 404


def test_headers_let_the_page_load_nothing_from_elsewhere(server):
    _, headers, page = send(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
    assert nonce is not None
    assert page.decode().count(f'nonce="{nonce[1]}"') == 2
    assert not re.search(rb"https?://|src=|href=", page)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in headers["Server"]
    assert send(server, "GET", "/")[1]["Content-Security-Policy"] != policy  # a nonce is used once


# --------------------------------------------------------------------------------------------- raters of other machines


def test_on_loopback_nobody_needs_a_key_and_the_line_says_who_can_come(server):
    assert (server.key, server.reach) == (None, "for raters on this machine")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.2"])
@pytest.mark.parametrize("token", [None, "word-of-the-class"])
def test_elsewhere_the_page_needs_the_key_of_the_address(config, host, token):
    with served(replace(config, host=host, token=token)) as server:
        assert server.url.endswith(f":{server.server_address[1]}/?key={server.key}")
        assert token in (None, server.key)
        assert "everyone who can reach this machine" in server.reach
        at = {"0.0.0.0": "127.0.0.1"}.get(host, host)
        for path in ("/", "/?key=", "/?key=guess", f"/?key={server.key}x"):
            assert send(server, "GET", path, at=at)[0] == 403
        status, _, page = send(server, "GET", f"/?key={server.key}", at=at, Host="10.0.0.7:1234")
        assert status == 200
        found = re.search(rb'data-token="([^"]+)"', page)
        assert found is not None
        body = b'{"rater": "ann"}'
        assert send(server, "POST", "/next", body, at=at, X_Survey_Token="none")[0] == 403
        status, _, state = send(server, "POST", "/next", body, at=at, X_Survey_Token=found[1].decode())
        assert status == 200
        assert send(server, "GET", f"/image/{json.loads(state)['left']}", at=at)[0] == 200


@pytest.mark.parametrize("token", ["short", "with space", "a/b/c/d/e/f"])
def test_tokens_are_words_that_an_address_can_hold(token):
    with pytest.raises(UserError, match="token"):
        resolve(SurveyConfig, {"before": "a", "after": "b", "out": "c", "token": token})


def test_a_class_of_raters_may_come_at_once(config):
    """Before anybody is served: more than the five connections that wait by default."""
    with SurveyServer(prepare(config), ties=True, port=0) as server, ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(server.server_address[:2], timeout=2))


@pytest.mark.parametrize(("checks", "said"), [(0.25, True), (0.0, False)])
def test_the_page_says_that_checks_have_a_right_answer(config, tmp_path, checks, said):
    with served(replace(config, checks=checks)) as server:
        page = " ".join(send(server, "GET", "/")[2].decode().split())
    assert ("in a few pairs one image is plainly spoilt: there the other one is right" in page) == said
    assert "between the two there is no right answer" in page


# ----------------------------------------------------------------------------------------------------------- full disks


FULL = [
    sqlite3.OperationalError("database or disk is full"),
    sqlite3.OperationalError("disk I/O error"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
@pytest.mark.parametrize("method", ["add", "answered", "take_back"])
def test_a_full_disk_is_said_and_the_survey_goes_on_once_there_is_room(server, config, monkeypatch, error, method):
    ann = Rater(server, "Ann")
    state = ann.answer(ann.next(), "left")

    def full(*_: object) -> None:
        raise error

    requests = {"add": ("/answer", {"choice": "left", "milliseconds": 7}), "take_back": ("/undo", {})}
    path, more = requests.get(method, ("/undo", {}))
    content = json.dumps({"rater": "Ann", "turn": state["turn"], **more}).encode()
    with monkeypatch.context() as patch:
        patch.setattr(Store, method, full)
        for _ in range(3):
            status, _, reply = send(server, "POST", path, content, X_Survey_Token=ann.token)
            assert status == 507
            assert "could not be kept" in json.loads(reply)["error"]
    assert len(rows(config)) == 1
    assert ann.answer(state, "right")["done"] == 2
    assert len(rows(config)) == 2


@pytest.mark.parametrize("free_kb", [0, 4, 8])
def test_a_disk_that_really_fills_up(sets, config, tiny_disk, free_kb):
    config = replace(config, out=tiny_disk / "answers.db")
    with served(config) as server:
        ann = Rater(server, "Ann")
        state = ann.answer(ann.next(), "left")
        filler = fill(tiny_disk, free_kb=free_kb)
        kept, status, reply = 1, 200, b""
        while status == 200:  # what is left of the room takes some more answers
            body = {"rater": "Ann", "turn": state["turn"], "choice": "right", "milliseconds": 7}
            status, _, reply = send(server, "POST", "/answer", json.dumps(body).encode(), X_Survey_Token=ann.token)
            kept, state = (kept + 1, json.loads(reply)) if status == 200 else (kept, state)
        assert status == 507
        assert "could not be kept" in json.loads(reply)["error"]
        filler.unlink()
        state = ann.next()
        assert (state["done"], len(rows(config))) == (kept, kept)
        while "turn" in state:
            state = ann.answer(state, "left")
    assert len(rows(config)) == TOTAL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("package", ["bigroc", "eval"])
def test_a_signal_ends_a_survey_with_its_summary(sets, tmp_path, package, number):
    out = tmp_path / "answers.db"
    paths = ["--before", sets / "before.npz", "--after", sets / "after", "--out", out, "--port", "0"]
    argv = [sys.executable, "-m", package, "survey", *map(str, paths)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("survey at http://127.0.0.1:"):
            assert process.poll() is None
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, f"0 answers of 0 raters in {out}; bigroc survey report {out}\n")
