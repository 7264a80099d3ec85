"""The studio over HTTP, without a browser: every tab's run, the queue, who is kept out, and what is refused."""

import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refine.cli import main
from refine.network import Network
from refine.studio import runs
from refine.studio.config import StudioConfig
from refine.studio.server import StudioServer
from refine.synthesis.tasks.explain import explain
from robust_models import NORMALIZERS, Description, RobustClassifier, save, to_float
from tests.studio import ASKED, MASK, SIDE, X, asked, frame_of, packed, post, run, save_seeds, served, unpacked
from tests.tiny import CLASSES, tiny_pixels

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(checkpoint, tmp_path) -> StudioConfig:
    save_seeds(checkpoint.with_name("tiny.seeds.npz"))
    np.savez(tmp_path / "images.npz", arr_0=tiny_pixels(20)[0])
    return StudioConfig(ckpt=str(checkpoint), out=tmp_path / "out", images=tmp_path / "images.npz", port=0)


@pytest.fixture
def server(config) -> Iterator[StudioServer]:
    with served(config) as running:
        yield running


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", [name for name in ASKED if name != "explain"])
def test_a_run_sends_every_step_and_lowers_the_objective(server, name):
    found = run(server, name)
    assert found.status == 200
    assert "error" not in found.json, found.json
    steps = found.json["steps"]
    assert [frame.step for frame in found.frames] == list(range(steps + 1)) == list(range(6))
    assert found.json["done"]
    assert found.json["name"] == CLASSES[found.json["label"]]
    assert found.frames[-1].objective < found.frames[0].objective
    assert all(0 <= frame.confidence <= 1 and frame.seconds >= 0 for frame in found.frames)
    seconds = [frame.seconds for frame in found.frames]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("name", ["paint", "paint a feature", "inpaint"])
def test_nothing_outside_the_mask_changes_at_any_step(server, name):
    for frame in run(server, name).frames:
        assert (frame.pixels[MASK == 0] == X[MASK == 0]).all()
        assert frame.step == 0 or (frame.pixels[MASK > 0] != X[MASK > 0]).any()


def test_explain_is_what_the_command_computes(server):
    found = run(server, "explain", label=1)
    x = to_float(torch.from_numpy(X.copy()).permute(2, 0, 1).unsqueeze(0))
    expected = explain(Network(server.network.model), x, torch.tensor([1]))
    assert found.json["probs"] == pytest.approx(expected.probs[0].tolist(), abs=1e-5)
    assert (found.frames[0].pixels == expected.gradient_u8[0].permute(1, 2, 0).numpy()).all()
    assert found.json["name"] == CLASSES[1]


def test_a_guessed_class_is_the_one_that_is_seen(server):
    probs = run(server, "explain").json["probs"]
    assert run(server, "refine").json["label"] == int(np.argmax(probs))


def test_nothing_is_kept_between_requests(server):
    """The same request gives the same frames, whatever came between."""
    first = run(server, "refine")
    run(server, "paint", label=1)
    again = run(server, "refine")
    assert [frame.pixels.tolist() for frame in first.frames] == [frame.pixels.tolist() for frame in again.frames]
    network = server.network.model
    assert not any(parameter.grad is not None for parameter in network.parameters())
    assert not network._forward_hooks  # the watcher has left


def test_frames_are_clipped(server):
    """refine's own box is the last step's: what is shown is clipped at each."""
    found = run(server, "refine", options={"eps": 60, "steps": 4, "step_size": 30.0})
    assert found.frames[-1].pixels.min() == 0
    assert found.frames[-1].pixels.max() == 255


# --------------------------------------------------------------------------------------------------- queue and leaving


def begun(server: StudioServer, steps: int = 400) -> socket.socket:
    """A connection whose run has begun."""
    values, parts = asked("refine", options={"eps": 1.5, "steps": steps})
    body = packed(values, *parts)
    connection = socket.create_connection(server.server_address[:2], timeout=30)
    head = ["POST /run HTTP/1.1", "Host: localhost", f"X-Studio-Token: {server.token}", f"Content-Length: {len(body)}"]
    connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return connection


def read_until(connection: socket.socket, kind: bytes) -> bytes:
    """The content of the last message of this kind that has come, once there is one; nothing is taken away."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        data = connection.recv(1 << 20, socket.MSG_PEEK)
        found = [content for one, content in unpacked(data.partition(b"\r\n\r\n")[2]) if one == kind]
        if found:
            return found[-1]
        time.sleep(0.01)
    raise TimeoutError


def waited_for(condition, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return bool(condition())


def test_leaving_frees_the_worker_within_one_step(server, monkeypatch):
    """Every step takes 0.1 s; after the connection is closed at most the one under way is finished."""
    inner = server.network.model.forward

    def slow(x):
        time.sleep(0.1)
        return inner(x)

    monkeypatch.setattr(server.network.model, "forward", slow)
    connection = begun(server)
    read_until(connection, b"F")
    connection.close()
    closed_at = server.worker.steps
    time.sleep(0.5)
    assert server.worker.steps - closed_at <= 1
    monkeypatch.undo()
    started = time.monotonic()
    assert run(server, "refine").json["done"]
    assert time.monotonic() - started < 5  # 400 steps would take 40 s


def test_those_who_wait_are_told_how_many_are_before_them(server, monkeypatch):
    go = threading.Event()
    inner = server.network.model.forward
    monkeypatch.setattr(server.network.model, "forward", lambda x: (go.wait(20), inner(x))[1])
    with ExitStack() as stack:
        first = stack.enter_context(closing(begun(server, 1)))
        assert waited_for(lambda: server.worker._current is not None)
        second = stack.enter_context(closing(begun(server, 1)))
        assert json.loads(read_until(second, b"J")) == {"ahead": 1}
        third = stack.enter_context(closing(begun(server, 1)))
        assert json.loads(read_until(third, b"J")) == {"ahead": 2}
        second.close()  # who leaves the queue is passed over
        go.set()
        assert frame_of(read_until(third, b"F")).step in (0, 1)
        assert first.recv(1)


def test_a_studio_that_ends_leaves_no_worker(config):
    def workers() -> int:
        return sum(thread.name == "studio" for thread in threading.enumerate())

    before = workers()
    with served(config) as server:
        assert run(server, "refine").json["done"]
        assert workers() == before + 1
    assert waited_for(lambda: workers() <= before)


def test_a_full_queue_is_one_line(server, monkeypatch):
    go = threading.Event()
    inner = server.network.model.forward
    monkeypatch.setattr(server.network.model, "forward", lambda x: (go.wait(20), inner(x))[1])
    with ExitStack() as stack:
        stack.enter_context(closing(begun(server, 1)))
        assert waited_for(lambda: server.worker._current is not None)
        for _ in range(runs.MOST_WAITING):
            stack.enter_context(closing(begun(server, 1)))
        assert waited_for(lambda: len(server.worker._waiting) == runs.MOST_WAITING)
        found = run(server, "refine")
        assert found.status == 400
        assert found.json["error"] == f"{runs.MOST_WAITING} runs are waiting already; try again in a while"
        go.set()


def test_frames_are_left_out_only_where_the_reader_lags(monkeypatch):
    monkeypatch.setattr(runs, "_MOST_UNREAD", 1000)
    job = runs.Job(lambda: iter(()), lambda: False, threading.Condition())  # type: ignore[arg-type]
    for step in range(10):
        job.put(runs.json_message(step=step))
        job.put(runs.frame_message(torch.zeros(3, 8, 8, dtype=torch.uint8), step, 0.0, 0.0, 0.0))
    messages, _, _ = job.take(0)
    kinds = [kind for message in messages for kind, _ in unpacked(message.content)]
    steps = [frame_of(m.content[5:]).step for m in messages if m.is_frame]
    assert kinds.count(b"J") == 10  # what is said is never left out
    assert steps == list(range(10 - len(steps), 10))
    assert 1 <= len(steps) <= 4
    for step in range(4):
        job.put(runs.frame_message(torch.zeros(3, 8, 8, dtype=torch.uint8), step, 0.0, 0.0, 0.0))
        assert len(job.take(0)[0]) == 1  # who reads gets all


def test_a_reader_that_does_not_read_keeps_no_others_waiting(server):
    with closing(begun(server, 300)), closing(begun(server, 300)):
        started = time.monotonic()
        assert run(server, "refine").json["done"]
        assert time.monotonic() - started < 60


def test_two_hundred_open_connections_keep_nobody_out(server):
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(closing(socket.create_connection(server.server_address[:2], timeout=10)))
        assert run(server, "refine").json["done"]


def test_a_run_that_fails_is_said_and_the_next_one_runs(server, monkeypatch, capsys):
    def broken(x):
        raise RuntimeError("no such kernel\nat line 3")

    with monkeypatch.context() as patch:
        patch.setattr(server.network.model, "forward", broken)
        assert run(server, "translate").json["error"] == "the run failed: RuntimeError: no such kernel"
    assert run(server, "translate").json["done"]
    assert "no such kernel" in capsys.readouterr().err  # for whoever runs the studio


def test_numbers_that_are_none_are_said(server, monkeypatch):
    inner = server.network.model.forward
    monkeypatch.setattr(server.network.model, "forward", lambda x: inner(x) * float("nan"))
    found = run(server, "translate")
    assert found.json["error"].startswith("step 0: the classifier's outputs are not finite")


# ----------------------------------------------------------------------------------------------- pictures and features


def image_file(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(
    ("side", "square", "expected"), [(16, True, (16, 16)), (20, False, (15, 20)), (512, False, (30, 40))]
)
def test_a_picture_is_decoded_and_made_small(server, kind, side, square, expected):
    found = post(server, "/image", packed({"name": "photo", "side": side, "square": square}, image_file(kind)))
    assert found.status == 200
    assert (found.json["height"], found.json["width"]) == expected
    assert found.json["was"] == [30, 40]
    assert found.json["cropped"] == square
    assert len(found.parts[0]) == 3 * expected[0] * expected[1]


def test_what_fits_is_not_touched_and_what_is_transparent_is_white(server):
    stream = io.BytesIO()
    Image.fromarray(X).save(stream, "PNG")
    found = post(server, "/image", packed({"name": "x", "side": SIDE, "square": True}, stream.getvalue()))
    assert found.parts[0] == X.tobytes()
    stream = io.BytesIO()
    Image.fromarray(np.dstack([X, np.where(MASK > 0, 255, 0).astype(np.uint8)])).save(stream, "PNG")
    found = post(server, "/image", packed({"name": "x", "side": SIDE, "square": True}, stream.getvalue()))
    pixels = np.frombuffer(found.parts[0], np.uint8).reshape(SIDE, SIDE, 3)
    assert (pixels[MASK == 0] == 255).all()
    assert (pixels[MASK > 0] == X[MASK > 0]).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "photo.png: cannot be decoded"),
        (b"<svg/>", "photo.png: cannot be decoded"),
        (image_file()[:200], "photo.png: cannot be decoded"),
        (b"%!PS-Adobe", "photo.png: cannot be decoded"),
    ],
)
def test_what_is_no_image_is_one_line(server, content, reason):
    found = post(server, "/image", packed({"name": "photo.png", "side": 16, "square": True}, content))
    assert found.status == 400
    assert found.json["error"].startswith(reason)
    assert "\n" not in found.json["error"]


def test_too_many_pixels_or_bytes_are_refused(server, monkeypatch):
    monkeypatch.setenv("BIGROC_MAX_PIXELS", "1000")
    found = post(server, "/image", packed({"name": "photo", "side": 16, "square": True}, image_file()))
    assert "at most 1,000 are read" in found.json["error"]
    monkeypatch.setenv("BIGROC_MAX_BYTES", "100")
    found = post(server, "/image", packed({"name": "photo", "side": 16, "square": True}, b"x" * (1 << 17)))
    assert found.status == 413


def test_the_first_picture_has_a_mask_and_a_class(server):
    found = post(server, "/first", packed({}))
    height, width, label = (found.json[name] for name in ("height", "width", "label"))
    assert (height, width) == (SIDE, SIDE)
    assert label in range(3)
    pixels, mask = found.parts
    assert len(pixels) == 3 * SIDE * SIDE
    assert {*mask} == {0, 255}
    values = {"tab": "paint", "height": SIDE, "width": SIDE, "masked": True, "label": label}
    found = post(server, "/run", packed(values | {"options": found.json["options"]}, pixels, mask))
    assert found.json["steps"] == 20
    assert found.json["done"]


def test_features_go_with_the_class_and_show_what_excites_them(server, config):
    found = post(server, "/features", packed({"label": 1, "count": 5}))
    assert [len(one["classes"]) for one in found.json["features"]] == [2] * 5
    tied = [dict(one["classes"]).get(CLASSES[1], -1) for one in found.json["features"]]
    assert tied[0] == max(tied)
    size = 3 * found.json["height"] * found.json["width"]
    assert len(found.parts[0]) == 5 * found.json["images"] * size
    k = found.json["features"][0]["feature"]
    images = torch.from_numpy(tiny_pixels(20)[0]).permute(0, 3, 1, 2)
    strongest = int(server.network.features(to_float(images))[:, k].argmax())
    assert found.parts[0][:size] == images[strongest].permute(1, 2, 0).contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"label": 3}, "class: 3 is none of the classifier's 3 classes"),
        ({}, "class: None is none"),
        ({"feature": 100000}, "feature: 100000 is out of range"),
        ({"feature": "x"}, "feature: 'x' is no index"),
        ({"label": 0, "count": 1000}, "count: 1000 is outside 1 to 48"),
    ],
)
def test_features_that_there_are_not(server, values, reason):
    assert post(server, "/features", packed(values)).json["error"].startswith(reason)


def test_without_images_the_features_say_what_to_do(config):
    with served(StudioConfig(ckpt=config.ckpt, out=config.out, port=0)) as server:
        found = post(server, "/features", packed({"label": 1}))
        assert found.json["error"] == "features: start the studio with --images SET to see what excites them"


# -------------------------------------------------------------------------------------------- ImageNet-size classifiers


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Iterator[StudioServer]:
    """A studio of a torchvision network for 224 px, with random weights."""
    folder = tmp_path_factory.mktemp("large")
    names = tuple(f"kind {i}" for i in range(12))
    description = Description("torchvision:mobilenet_v3_small", names, 224, normalizer=NORMALIZERS["imagenet"])
    save(RobustClassifier.from_description(description).eval(), folder / "large.safetensors")
    with served(StudioConfig(ckpt=str(folder / "large.safetensors"), out=folder / "out", port=0)) as running:
        yield running


def test_a_large_classifier_opens_with_a_photograph_of_its_size(large):
    found = post(large, "/first", packed({}))
    assert (found.json["height"], found.json["width"]) == (224, 224)
    assert "Grace Hopper" in found.json["credit"]
    values = {"tab": "paint", "height": 224, "width": 224, "masked": True, "label": found.json["label"]}
    options = found.json["options"] | {"steps": 3}
    run_ = post(large, "/run", packed(values | {"options": options}, *found.parts))
    assert [frame.step for frame in run_.frames] == [0, 1, 2, 3]
    changed = (run_.frames[-1].pixels != run_.frames[0].pixels).any(axis=2)
    mask = np.frombuffer(found.parts[1], np.uint8).reshape(224, 224) > 0
    assert changed[mask].mean() > 0.5
    assert not changed[~mask].any()


@pytest.mark.parametrize(("height", "width"), [(150, 512), (512, 384)])
def test_photographs_of_other_shapes_are_seen_at_the_classifiers_size(large, height, width):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    values = {"tab": "refine", "height": height, "width": width, "options": {"eps": 4.0, "steps": 2}}
    found = post(large, "/run", packed(values, pixels.tobytes()))
    assert found.frames[-1].pixels.shape == (height, width, 3)
    assert (found.frames[0].pixels == pixels).all()
    assert (found.frames[-1].pixels != pixels).any()


def test_defaults_are_those_of_large_images(large):
    found = post(large, "/first", packed({}))
    values = {"tab": "translate", "height": 224, "width": 224, "label": 1, "options": {"steps": 1}}
    found = post(large, "/run", packed(values, found.parts[0]))
    assert (found.json["eps"], found.json["step_size"]) == (80, 0.5)


def test_a_photograph_of_a_telephone_is_made_smaller(large):
    """48 megapixels, as they come; one is decoded at a time."""
    stream = io.BytesIO()
    Image.fromarray(np.full((6000, 8000, 3), 90, np.uint8)).save(stream, "JPEG")
    found = post(large, "/image", packed({"name": "p.jpg", "side": 512, "square": False}, stream.getvalue()))
    assert (found.json["height"], found.json["width"], found.json["was"]) == (384, 512, [6000, 8000])


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("words", [["refine", "studio"], ["bigroc", "studio"]], ids=" ".join)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_studio_with_its_summary(tmp_path, words, number):
    argv = [sys.executable, "-m", *words, "--port", "0", "--out", str(tmp_path / "out")]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("studio at http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[2]) as page:
            assert b"Studio" in page.read()
        process.send_signal(number)
        said, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")
    assert said == f"0 pictures with their commands in {tmp_path / 'out'}\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ckpt", "nothing.pt"], "error: ckpt: no file nothing.pt"),
        (["--images", "nothing.npz"], "error: nothing.npz: no such file or folder"),
        (["--port", "70000"], "error: port: "),
        (["--device", "tpu9"], "error: device: 'tpu9' cannot be used here"),
        (["--precison", "fp32"], "error: --precison: no such flag; did you mean --precision?"),
    ],
)
def test_a_bad_flag_is_one_line(words, reason, capsys):
    assert main(["studio", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(reason)
    assert error.count("\n") == 1


def test_a_taken_port_is_one_line(server, config, capsys):
    port = str(server.server_address[1])
    assert main(["studio", "--ckpt", config.ckpt, "--port", port]) == 2
    assert f"error: port: {port} on 127.0.0.1 cannot be had" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ who is kept out


def get(server: StudioServer, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPConnection(*server.server_address[:2], timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def test_it_listens_on_loopback_only(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/first", "/image", "/run", "/features", "/save", "/gif"])
def test_nothing_is_done_without_the_token_or_for_other_pages(server, path):
    body = packed({})
    for headers in (
        {"X_Studio_Token": ""},
        {"X_Studio_Token": "guess"},
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ):
        found = post(server, path, body, **headers)
        assert found.status == 403
        assert server.token.encode() not in found.raw
    assert server.worker.steps == 0


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_the_page_and_its_files_are_for_loopback_hosts(server, host):
    for path in ("/", "/main.js", "/studio.css"):
        status, _, body = get(server, path, Host=host)
        assert status == 403
        assert server.token.encode() not in body


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/page.html.j2",
        "/..%2fserver.py",
        "//etc/passwd",
        "/page/main.js",
        "/main.js/",
        "/etc/passwd",
        "/main.js%00",
        "/.",
        "/studio.css/../main.js",
    ],
)
def test_addresses_are_no_files(server, path):
    assert get(server, path)[0] == 404


def test_the_page_loads_its_own_files_and_nothing_else(server):
    _, headers, page = get(server, "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy
    text = page.decode()
    assert "http://" not in text
    assert "https://" not in text
    assert " style=" not in text
    assert " onclick" not in text
    weight = len(page)
    for path, content in server.files.items():
        status, headers, body = get(server, path)
        assert (status, body) == (200, content)
        assert headers["Content-Type"].startswith(("text/javascript", "text/css", "image/svg+xml"))
        weight += len(body)
    assert weight <= 150 * 1024


def test_class_names_are_text_to_the_page(checkpoint, tmp_path):
    """A checkpoint's class names may hold anything; in the page they stay data."""
    names = "a</script><script>alert(1)</script>,b,c"
    with served(StudioConfig(ckpt=str(checkpoint), class_names=names, out=tmp_path, port=0)) as server:
        page = get(server, "/")[2].decode()
        assert "<script>alert" not in page
        facts = page.split('id="facts">')[1].split("</script>")[0]
        assert json.loads(facts)["classNames"] == names.split(",")


# ------------------------------------------------------------------------------------------------------ what is refused


REFUSED = [
    ({"tab": "elsewhere"}, "tab: 'elsewhere' is none"),
    ({"options": {"steps": 501}}, "steps: 501 is above 500"),
    ({"options": {"steps": 0, "eps": 1}}, "steps: input should be greater than or equal to 1"),
    ({"options": {"eps": -1}}, "eps: input should be greater than or equal to 0"),
    ({"options": {}}, "eps: is required"),
    ({"options": {"eps": "x"}}, "eps: input should be a valid number"),
    ({"options": {"eps": 1, "step_size": 0}}, "step_size: input should be greater than 0"),
    ({"options": {"eps": 1, "loss": "mse"}}, "loss: 'mse' is none of"),
    ({"options": {"ckpt": "/etc/passwd", "eps": 1}}, "ckpt: cannot be set on this tab"),
    ({"options": {"trust": 1, "eps": 1}}, "trust: cannot be set on this tab"),
    ({"options": {"out": "/tmp/x", "eps": 1}}, "out: cannot be set on this tab"),
    ({"options": {"mask": "/etc/passwd", "eps": 1}}, "mask: cannot be set on this tab"),
    ({"ckpt": "/etc/passwd"}, "ckpt: unexpected"),
    ({"label": 3}, "class: 3 is none of the classifier's 3 classes"),
    ({"label": -1}, "class: -1 is none of the classifier's 3 classes"),
    ({"label": "bird"}, "label: "),
    ({"label": True}, "label: "),
    ({"height": 0}, "image: 16x0 pixels; sides of 1 to 512"),
    ({"height": 5000, "width": 5000}, "image: 5000x5000 pixels; sides of 1 to 512"),
    ({"width": 17}, "image: 768 bytes came, 816 were expected"),
    ({"masked": True}, "mask: this tab has none"),
    ({"tab": "paint"}, "mask: this tab needs one"),
    ({"tab": "translate", "options": {}}, "class: choose one"),
    ({"tab": "superres", "options": {"factor": 64}}, "factor: 64 makes 1024x1024 pixels; at most 512"),
    ({"tab": "superres", "options": {}}, "factor: is required"),
    ({"tab": "generate", "options": {}}, "image: this tab begins with a seed"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_refusal_is_one_line_that_names_the_control(server, changes, reason):
    found = run(server, "refine", **changes)
    assert found.status == 400
    assert found.json["error"].startswith(reason)
    assert "\n" not in found.json["error"]
    assert server.worker.steps == 0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [(np.zeros_like(MASK), "mask: nothing is painted yet"), (np.full_like(MASK, 255), "mask: all is painted")],
)
@pytest.mark.parametrize("name", ["paint", "inpaint"])
def test_masks_that_say_nothing(server, name, mask, reason):
    values, _ = asked(name)
    assert post(server, "/run", packed(values, X.tobytes(), mask.tobytes())).json["error"].startswith(reason)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        struct.pack("<I", 99),
        struct.pack("<I", 1 << 31) + b"{}",
        packed(b"{"),
        packed(b"[]"),
        packed(b"\xff"),
        packed(b'{"tab": NaN}'),
        packed(b"[" * 5000),
        packed(b'{"tab": "refine", "options": {"eps": 1e999}}'),
    ],
)
@pytest.mark.parametrize("path", ["/run", "/image", "/features", "/save", "/gif"])
def test_bodies_that_are_none(server, path, body):
    found = post(server, path, body)
    assert found.status == 400
    assert isinstance(found.json["error"], str)


def test_a_checkpoint_without_features_can_still_be_refined(config, monkeypatch):
    from robust_models import UserError
    from robust_models.classifier import RobustClassifier

    def none(_):
        raise UserError("no linear layer, so no features to take")

    monkeypatch.setattr(RobustClassifier, "head", property(none))
    with served(config) as server:
        assert b'"features": 0' in server.html
        assert run(server, "refine").json["done"]
        assert "this classifier has none to paint with" in post(server, "/features", packed({"label": 1})).json["error"]
