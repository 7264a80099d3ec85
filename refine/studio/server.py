"""The studio over HTTP: the page, and what it asks for. Nothing is kept between requests but what is on disk.

A posted body is four bytes of length (little-endian), as many of JSON, and pixels or a file behind it. Runs are
answered by a stream of messages (runs.py); the connection's end is the run's end, from either side.
"""

import json
import struct
from collections.abc import Callable, Generator, Mapping
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.method import pseudo_labels
from refine.network import Network
from refine.studio.config import StudioConfig
from refine.studio.feature_sheet import MOST_FEATURES, FeatureSheet
from refine.studio.photographs import first_photograph, most_bytes, read_photograph
from refine.studio.runs import Message, Worker, bytes_message, explanation_of, json_message, pixels_of, steps_of
from refine.studio.saving import Keeper, gif_of
from refine.studio.tabs import MOST_SIDE, MOST_STEPS, TABS, Asked, config_of, defaults, parse_asked, run_of
from robust_models.checkpoints.flags import load_classifier
from robust_models.errors import UserError
from robust_models.folding import folded
from robust_models.images import to_float
from robust_models.runtime.device import attack_loop, decide_precision, pick_device, place
from robust_models.runtime.page_server import PageHandler, PageServer

PAGE = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_SOURCES = "script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
_MOST_JSON = 1 << 16  # bytes
_PIXELS = MOST_SIDE * MOST_SIDE
MOST_GIF_BYTES = 24 << 20
_POLL_S = 0.05  # how often it is looked whether the browser has gone
_SCREEN_S = 1 / 60  # faster than this no screen shows frames: those of a fast run are sent several at once


class StudioServer(PageServer):
    """Serves the studio at `url` until it is shut down."""

    name = "studio"

    def __init__(self, config: StudioConfig) -> None:
        """UserError where the checkpoint or the images cannot be loaded, or the port is taken."""
        device = pick_device(config.device)
        classifier, source = load_classifier(config.ckpt, config)
        classifier = folded(classifier)
        precision = decide_precision(config.precision, device, attack_loop([classifier]))
        self.config, self.precision = config, precision
        self.network = Network(place(classifier, device, precision.precision))
        self.keeper = Keeper(config, source, precision, self.network.class_names)
        self.sheet = FeatureSheet(config, self.network)
        if config.images is not None:
            _ = self.sheet.images  # UserError now, not when somebody asks for them
        self.worker = Worker()
        self.files = {f"/{path.name}": path.read_bytes() for path in PAGE.iterdir() if path.suffix in _TYPES}
        super().__init__(_Handler, port=config.port)

    def server_close(self) -> None:
        """Ends the worker, too."""
        super().server_close()
        self.worker.close()

    @cached_property
    def html(self) -> bytes:
        """The page."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        loader = FileSystemLoader(PAGE)
        template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2")
        return template.render(facts=self._facts).encode()

    @property
    def _facts(self) -> dict[str, Any]:
        """What the page needs to know."""
        classifier = self.network.model
        return {
            "token": self.token,
            "ckpt": Path(self.config.ckpt).name,
            "classNames": classifier.class_names,
            "imageSize": classifier.image_size,
            "precision": str(self.precision),
            "features": self.sheet.count,
            "tabs": TABS,
            "defaults": {tab: defaults(tab, classifier) for tab in TABS},
            "mostSide": MOST_SIDE,
            "mostSteps": MOST_STEPS,
            "mostFileBytes": most_bytes(),
            "mostGifBytes": MOST_GIF_BYTES,
        }


class _Handler(PageHandler):
    server: StudioServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def page(self) -> None:
        self.reply(self.server.html, "text/html; charset=utf-8", sources=_SOURCES)

    def get(self, path: str) -> None:
        content = self.server.files.get(path)
        if content is None:
            return self.refuse(HTTPStatus.NOT_FOUND, "nothing here")
        return self.reply(content, f"{_TYPES[Path(path).suffix]}; charset=utf-8")

    def most_bytes(self, path: str) -> int | None:
        limits = {
            "/first": 0,
            "/image": most_bytes(),
            "/run": 4 * _PIXELS,
            "/features": 0,
            "/save": 7 * _PIXELS,
            "/gif": MOST_GIF_BYTES,
        }
        return 4 + _MOST_JSON + limits[path] if path in limits else None

    def post(self, path: str, body: bytes) -> None:
        acts: dict[str, Callable[[dict[str, Any], memoryview], None]] = {
            "/first": self._first,
            "/image": self._image,
            "/run": self._run,
            "/features": self._features,
            "/save": self._save,
            "/gif": self._gif,
        }
        try:
            acts[path](*_opened(body))
        except UserError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _first(self, asked: dict[str, Any], rest: memoryview) -> None:
        first = first_photograph(self.server.network.image_size, len(self.server.network.class_names))
        height, width = first.mask.shape
        head = json_message(height=height, width=width, label=first.label, options=first.options, credit=first.credit)
        mask = bytes_message(first.mask.numpy().tobytes())
        self._reply_messages(head, bytes_message(pixels_of(first.x_u8)), mask)

    def _image(self, asked: dict[str, Any], rest: memoryview) -> None:
        """A file, decoded and made small."""
        name, side, square = asked.get("name"), asked.get("side"), asked.get("square")
        if not isinstance(name, str) or not isinstance(side, int) or not isinstance(square, bool):
            raise UserError("image: name, side and square are expected")
        if not 1 <= side <= MOST_SIDE:
            raise UserError(f"size: {side} is outside 1 to {MOST_SIDE} pixels")
        photograph = read_photograph(bytes(rest), name[:80] or "image", side, square=square)
        _, height, width = photograph.x_u8.shape
        head = json_message(height=height, width=width, was=photograph.was, cropped=photograph.is_cropped)
        self._reply_messages(head, bytes_message(pixels_of(photograph.x_u8)))

    def _run(self, values: dict[str, Any], rest: memoryview) -> None:
        """Steps, streamed; or the classifier's view on the tab "explain"."""
        server = self.server
        asked = parse_asked(values)
        x_u8, mask_u8 = _pixels(asked, rest, 0)
        config = config_of(server.config, server.precision.precision, asked, server.network.class_names)
        self._stream(partial(_messages, server.network, config, asked, x_u8, mask_u8))

    def _features(self, asked: dict[str, Any], rest: memoryview) -> None:
        """Thumbnails of what excites features, by class or for one of them."""
        label, feature, count = asked.get("label"), asked.get("feature"), asked.get("count", 24)
        classes = len(self.server.network.class_names)
        if feature is None and not (isinstance(label, int) and 0 <= label < classes):
            raise UserError(f"class: {label} is none of the classifier's {classes} classes")
        if feature is not None and not isinstance(feature, int):
            raise UserError(f"feature: {feature!r} is no index")
        if not isinstance(count, int) or not 1 <= count <= MOST_FEATURES:
            raise UserError(f"count: {count!r} is outside 1 to {MOST_FEATURES}")
        self._stream(partial(self.server.sheet.of_class, label, feature, count))

    def _save(self, values: dict[str, Any], rest: memoryview) -> None:
        """A folder with the picture and the command that makes it again."""
        step, height, width = (values.pop(name, None) for name in ("step", "result_height", "result_width"))
        if not all(isinstance(number, int) and number >= 0 for number in (step, height, width)):
            raise UserError("step: step, result_height and result_width are expected")
        if not 0 < max(height, width) <= MOST_SIDE:
            raise UserError(f"result: {width}x{height} pixels; at most {MOST_SIDE} a side")
        asked = parse_asked(values)
        x_u8, mask_u8 = _pixels(asked, rest, 3 * height * width)
        result = _as_image(rest[asked.image_bytes + asked.mask_bytes :], height, width)
        self.reply_json(self.server.keeper.save(asked, step, x_u8, mask_u8, result))

    def _gif(self, asked: Mapping[str, Any], rest: memoryview) -> None:
        """An animation of frames that the page has."""
        height, width, steps, name = (asked.get(key) for key in ("height", "width", "steps", "name"))
        sides = all(isinstance(side, int) and 1 <= side <= MOST_SIDE for side in (height, width))
        if not sides or not isinstance(steps, list) or not all(isinstance(step, int) for step in steps) or not steps:
            raise UserError("gif: height, width and steps are expected")
        assert isinstance(height, int)
        assert isinstance(width, int)
        size = 3 * height * width
        if len(rest) != size * len(steps):
            raise UserError(f"gif: {len(rest)} bytes for {len(steps)} frames of {size}")
        frames = [_as_image(rest[i * size : (i + 1) * size], height, width) for i in range(len(steps))]
        self.reply(gif_of(frames, steps, str(name)[:40]), "image/gif")

    def _stream(self, work: Callable[[], Generator[Message]]) -> None:
        """Has the work done and sends its messages as they come, and first how many are before it."""
        job = self.server.worker.submit(work, lambda: self.is_gone)
        try:
            self.send_head("application/octet-stream")
            said = 0
            while True:
                messages, ahead, is_done = job.take(_POLL_S)
                if self.is_gone:
                    return
                if ahead != said:
                    said = ahead
                    self.wfile.write(json_message(ahead=ahead).content)
                if messages:
                    self.wfile.write(b"".join(message.content for message in messages))
                    job.finished.wait(_SCREEN_S)
                if is_done and not messages:
                    return
        finally:
            job.cancel()

    def _reply_messages(self, *messages: Message) -> None:
        self.reply(b"".join(message.content for message in messages), "application/octet-stream")


def _messages(
    network: Network, config: Any, asked: Asked, x_u8: Tensor | None, mask_u8: np.ndarray | None
) -> Generator[Message]:
    """What is asked, in the worker."""
    if asked.tab == "explain":
        assert x_u8 is not None
        label = asked.label
        y = pseudo_labels(network, network.here(to_float(x_u8))).cpu() if label is None else torch.tensor([label])
        yield from explanation_of(x_u8, y, network)
        return
    mask = None if mask_u8 is None else torch.from_numpy(mask_u8 > 127)[None, None].float()
    yield from steps_of(run_of(config, asked, network, x_u8, mask), network)


def _opened(body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON and what is behind it."""
    length = struct.unpack_from("<I", body)[0] if len(body) >= 4 else -1
    if not 0 <= length <= min(len(body) - 4, _MOST_JSON):
        raise UserError("request: its JSON is not there")
    try:
        values = json.loads(body[4 : 4 + length])
    except (ValueError, RecursionError) as error:
        raise UserError(f"request: its JSON cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise UserError("request: expected an object")
    return values, memoryview(body)[4 + length :]


def _pixels(asked: Asked, rest: memoryview, more: int) -> tuple[Tensor | None, np.ndarray | None]:
    """Image [1,3,H,W] and mask [H,W] with which `rest` begins. UserError where it has not the bytes they need."""
    expected = asked.image_bytes + asked.mask_bytes + more
    if len(rest) != expected:
        raise UserError(f"image: {len(rest)} bytes came, {expected} were expected")
    if not asked.image_bytes:
        return None, None
    x_u8 = _as_image(rest[: asked.image_bytes], asked.height, asked.width).unsqueeze(0)
    if not asked.masked:
        return x_u8, None
    mask = np.frombuffer(rest[asked.image_bytes : asked.image_bytes + asked.mask_bytes], np.uint8)
    mask = np.where(mask.reshape(asked.height, asked.width) > 127, 255, 0).astype(np.uint8)
    if not mask.any():
        raise UserError("mask: nothing is painted yet; paint where the change is to be")
    if mask.all():
        raise UserError("mask: all is painted; leave some of the image as it is")
    return x_u8, mask


def _as_image(pixels: memoryview, height: int, width: int) -> Tensor:
    """RGB, a row after the other -> uint8 [3,H,W]."""
    rows = np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()
    return torch.from_numpy(rows).permute(2, 0, 1).contiguous()
