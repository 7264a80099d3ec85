"""Certificates as they come, in a file from which a run goes on: a head with its settings, then a line an image."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.certify.smoothed_votes import Certificate
from robust_models.errors import UserError
from robust_models.runtime.files import whole_file

FORMAT = "bigroc certificates 2"


class Journal:
    """The certificates in a file, and those that are appended to it; without a file it keeps nothing.

    found: image -> certificate, of the images x_u8 [N,3,H,W] that the file holds certificates of. Each line names the
    pixels that it is about. UserError for a file that is no such state, or of other settings or images.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], x_u8: Tensor) -> None:
        self.found: dict[int, Certificate] = {}
        self._x_u8, self._file = x_u8, None
        if path is None:
            return
        lines = _whole_lines(path)
        if lines:
            self._read(path, settings, lines)
        else:
            lines = [json.dumps({"format": FORMAT, **settings})]
        with whole_file(path) as partial:  # without the line that a kill cut short
            partial.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def add(self, image: int, found: Certificate) -> None:
        """On the disk before the next image is begun."""
        if self._file:
            line = {"image": image, "pixels": self._pixels(image), **asdict(found)}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _read(self, path: Path, settings: Mapping[str, Any], lines: list[str]) -> None:
        begun = _entry(lines[0])
        if begun is None or begun.get("format") != FORMAT:
            raise UserError(f"state: {path} is not a state that certify wrote ({FORMAT}); name another file")
        for name, value in settings.items():
            if begun.get(name) != value:
                raise UserError(
                    f"state: {path} belongs to another run: {name} was {begun.get(name)} there and is {value} here; "
                    "name another file, or remove it to begin again"
                )
        for number, line in enumerate(lines[1:], 2):
            entry = _entry(line)
            try:
                image, pixels, certificate = _certificate(entry)
            except (TypeError, KeyError) as error:
                raise UserError(f"state: {path} is damaged at line {number}; remove that line, and go on") from error
            if image < len(self._x_u8):
                if pixels != self._pixels(image):
                    raise UserError(
                        f"state: {path} holds certificates of other images (number {image} is another one here); name "
                        "another file, or remove it to begin again"
                    )
                self.found[image] = certificate

    def _pixels(self, image: int) -> str:
        return hashlib.sha256(self._x_u8[image].numpy().tobytes()).hexdigest()[:16]


def _whole_lines(path: Path) -> list[str]:
    """Those that end; of a file that is not there, none."""
    if not path.exists():
        return []
    try:
        return path.read_text("utf-8").split("\n")[:-1] if path.stat().st_size else []
    except (OSError, ValueError):  # a folder, bytes that are no text
        return [""]


def _entry(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _certificate(entry: Any) -> tuple[int, str, Certificate]:
    return entry["image"], entry["pixels"], Certificate(entry["guess"], entry["votes"], entry["radius"])
