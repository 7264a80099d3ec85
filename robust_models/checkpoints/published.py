"""Other people's published classifiers by name: where they are, what they are, and the way onto this machine.

A file comes from torch hub's cache, else by a download that says what, from where and what was checked. A copy that is
already here does instead: put it in that cache, or load it by its path.
"""

import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
import yaml

from robust_models.classifier import Normalizer
from robust_models.errors import UserError
from robust_models.runtime.files import sha256_of
from robust_models.threat import ThreatModel


@dataclass(frozen=True)
class Published:
    """One row of published.yaml."""

    name: str
    url: str
    file: str  # its name in the cache
    source: str
    licence: str
    arch: str
    activation: str | None
    normalizer: Normalizer | None
    threat_model: ThreatModel | None
    sha256: str | None  # None: the source states none
    megabytes: float | None  # of the file, as the source states it


@cache
def published() -> dict[str, Published]:
    """Every row of the table, by name."""
    groups = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
    rows = [_row({**group, **model}, group.get("url", "")) for group in groups for model in group["models"]]
    return {row.name: row for row in rows}


def _row(entry: dict[str, Any], folder: str) -> Published:
    url = entry["url"] if entry["url"] != folder else folder + str(entry.get("file") or entry["drive"])
    eps = entry.get("eps")
    return Published(
        name=entry["name"],
        url=url,
        file=entry.get("file") or f"{entry['name']}{Path(urlsplit(url).path).suffix or '.pt'}",
        source=entry["source"],
        licence=entry["licence"],
        arch=entry["arch"],
        activation=entry.get("activation"),
        normalizer=Normalizer.parse(entry["normalizer"]) if "normalizer" in entry else None,
        threat_model=ThreatModel(entry["norm"], float(Fraction(str(eps)))) if eps is not None else None,
        sha256=entry.get("sha256"),
        megabytes=entry.get("megabytes"),
    )


def fetch(model: Published) -> Path:
    """The model's file in torch hub's cache, downloaded with progress where it is missing.

    UserError where the download fails or the bytes have another hash than the source states.
    """
    place = Path(torch.hub.get_dir()) / "checkpoints" / model.file
    if place.is_file():
        return _checked(model, place)
    checked = f"sha256 {model.sha256[:12]}... is checked" if model.sha256 else "its source states no hash to check"
    print(f"{model.name}: downloading {model.url} to {place} ({model.licence}; {checked})", file=sys.stderr)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(model.url, str(place), hash_prefix=model.sha256)
    except (URLError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"ckpt: {model.name} could not be downloaded from {model.url} ({error}); "
            f"fetch it by other means and put it at {place}, or give its path"
        ) from error
    return place


def _checked(model: Published, place: Path) -> Path:
    if model.sha256 and (found := sha256_of(place)) != model.sha256:
        raise UserError(
            f"ckpt: {place} is not {model.name} (sha256 {found[:12]}..., expected {model.sha256[:12]}...); remove it"
        )
    return place


def known_by_hash(path: Path) -> Published | None:
    """The published model whose bytes these are, under whatever name; None where no stated hash fits."""
    size = path.stat().st_size / 1e6
    hashes = {model.sha256: model for model in published().values() if model.sha256 and _may_be(size, model.megabytes)}
    return hashes.get(sha256_of(path)) if hashes else None


def _may_be(megabytes: float, stated: float | None) -> bool:
    """Sizes are stated with three digits."""
    return stated is None or abs(megabytes - stated) < 0.01 * stated
