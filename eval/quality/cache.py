"""Statistics and features of image sets on disk, found again by what the pixels are and what was done to them."""

import hashlib
import json
import os
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from robust_models.errors import UserError
from robust_models.features import FeatureExtractor
from robust_models.images import ImageSet
from robust_models.runtime.files import whole_file

MOST_BYTES = 8 << 30  # of all that is kept
FORMAT = 2  # raised whenever the same key would mean other numbers
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
            path = self._file(key, content)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                found = dict(stored)
            with suppress(OSError):
                os.utime(path)  # it is in use: see _evict
            return found
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def store(self, key: str, content: str, arrays: Arrays) -> None:
        """Keeps the arrays; where there is no room or no permission, a warning on stderr is all that comes of it."""
        try:
            with whole_file(self._file(key, content)) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except (UserError, OSError) as error:
            print(f"warning: cache: not kept ({error}); --cache none, or another folder, avoids this", file=sys.stderr)
            return
        self._evict()

    def _evict(self) -> None:
        """Removes the files that were not used for longest, as long as all together take more than MOST_BYTES."""
        files = []
        for file in self.folder.glob("*/*.npz"):
            with suppress(FileNotFoundError):  # another process removes some, too
                files.append((file, file.stat()))
        total = sum(stat.st_size for _, stat in files)
        for file, stat in sorted(files, key=lambda one: one[1].st_mtime):
            if total <= MOST_BYTES:
                return
            file.unlink(missing_ok=True)
            total -= stat.st_size

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
