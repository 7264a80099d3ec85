"""A studio of a tiny classifier that listens, and what its page's script does, without a browser."""

import http.client
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refine.studio.config import StudioConfig
from refine.studio.server import StudioServer
from robust_models.class_seeds import ClassSeeds
from robust_models.mixture import fit
from tests.tiny import CLASSES

SIDE = 16
X = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[4:12, 3:9] = 255
BALL = {"eps": 1.5, "step_size": 0.25}
# What each tab may be asked: its class by index, what is set, and whether it takes an image and a mask.
ASKED: dict[str, tuple[int | None, dict[str, Any], bool, bool]] = {
    "refine": (None, {"eps": 1.5, "steps": 5, "loss": "margin"}, True, False),
    "paint": (2, {**BALL, "steps": 5, "strength": 1.0, "fidelity": 0.5}, True, True),
    "paint a feature": (None, {**BALL, "steps": 5, "feature": 7, "fidelity": 0.5}, True, True),
    "inpaint": (None, {**BALL, "steps": 5, "fill": "mean"}, True, True),
    "sketch": (1, {"steps": 5}, True, False),
    "translate": (0, {**BALL, "steps": 5}, True, False),
    "superres": (None, {**BALL, "steps": 5, "factor": 2, "start_from": "bicubic"}, True, False),
    "generate": (1, {**BALL, "steps": 5, "seed": 12}, False, False),
    "explain": (None, {}, True, False),
}


def save_seeds(path: Path) -> None:
    """Seeds for the tiny classifier's classes."""
    x = torch.rand(40, 3 * 4 * 4, generator=torch.Generator().manual_seed(2)).double()
    mixtures = tuple(fit(x + 0.1 * k, 1, rank=8, generator=torch.Generator().manual_seed(k)) for k in range(3))
    ClassSeeds(CLASSES, mixtures, 4, SIDE, "random numbers").save(path)


@contextmanager
def served(config: StudioConfig) -> Iterator[StudioServer]:
    """The studio, listening."""
    with StudioServer(config) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Frame:
    """One step as the page gets it."""

    step: int
    objective: float
    confidence: float
    seconds: float
    pixels: np.ndarray  # [H,W,3]


@dataclass
class Answer:
    """The messages of one reply."""

    status: int
    json: dict[str, Any] = field(default_factory=dict)  # of all messages together
    frames: list[Frame] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)  # of kind B
    raw: bytes = b""


def packed(values: Any, *parts: bytes) -> bytes:
    """A body as the page posts it."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<I", len(text)) + text + b"".join(parts)


def unpacked(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the messages in a reply; what is incomplete at its end is left out."""
    while len(data) >= 5 and len(data) >= 4 + (length := struct.unpack_from("<I", data)[0]):
        yield data[4:5], data[5 : 4 + length]
        data = data[4 + length :]


def frame_of(content: bytes) -> Frame:
    """A message of kind F."""
    step, objective, confidence, seconds, height, width = struct.unpack_from("<IfffHH", content)
    pixels = np.frombuffer(content[20:], np.uint8).reshape(height, width, 3)
    return Frame(step, objective, confidence, seconds, pixels)


def post(server: StudioServer, path: str, body: bytes, **headers: str) -> Answer:
    """What comes back, whole."""
    own = {"X-Studio-Token": server.token} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(*server.server_address[:2], timeout=60)) as connection:
        connection.request("POST", path, body, own)
        response = connection.getresponse()
        data = response.read()
    answer = Answer(response.status, raw=data)
    if response.headers["Content-Type"].startswith("application/json"):
        answer.json = json.loads(data)
    elif response.headers["Content-Type"].startswith("application/octet-stream"):
        for kind, content in unpacked(data):
            if kind == b"J":
                answer.json |= json.loads(content)
            elif kind == b"F":
                answer.frames.append(frame_of(content))
            else:
                answer.parts.append(content)
    return answer


def asked(name: str, **changes: Any) -> tuple[dict[str, Any], list[bytes]]:
    """The request for one of ASKED, and the pixels that go with it."""
    label, options, takes_image, takes_mask = ASKED[name]
    values = {"tab": name.split()[0], "label": label, "options": options, "masked": takes_mask}
    values |= {"height": SIDE * takes_image, "width": SIDE * takes_image}
    return values | changes, [X.tobytes()] * takes_image + [MASK.tobytes()] * takes_mask


def run(server: StudioServer, name: str, **changes: Any) -> Answer:
    """A run of one of ASKED, to its end."""
    values, parts = asked(name, **changes)
    return post(server, "/run", packed(values, *parts))
