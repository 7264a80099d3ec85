"""Statistics and features of image sets on disk, found again by what the pixels are and what was done to them."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from robust_models.features import FeatureExtractor
from robust_models.images import ImageSet
from robust_models.runtime.files import whole_file

FORMAT = 1  # raised whenever the same key would mean other numbers
Arrays = dict[str, np.ndarray]


class StatisticsCache:
    """A folder of .npz files: FOLDER/<what was done>/<the pixels' hash>.npz.

    A file is named by the hashes of all that its numbers depend on: a changed set, network or protocol finds nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def may_have(self, key: str) -> bool:
        """Whether anything was stored under `key`: where not, nobody need read a set only to hash it."""
        return (self.folder / key).is_dir()

    def load(self, key: str, content: str) -> Arrays | None:
        """What was stored; None where nothing was, or the file is not whole."""
        try:
            with self._file(key, content).open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def store(self, key: str, content: str, arrays: Arrays) -> None:
        """UserError where there is no room or no permission."""
        with whole_file(self._file(key, content)) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _file(self, key: str, content: str) -> Path:
        return self.folder / key / f"{content}.npz"


def cache_key(extractor: FeatureExtractor, images: ImageSet, **more: Any) -> str:
    """Of everything but the pixels that features and their statistics depend on."""
    parts = {
        "format": FORMAT,
        "network": extractor.source.sha256,
        "features": extractor.name.partition(":")[0],  # a classifier is its file, whatever path it had
        "protocol": extractor.protocol,
        "dtype": "float32",
        "n": len(images),
        "size": images.size,
        **more,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def user_cache() -> Path:
    """Where a person's caches lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigroc" / "quality"
