"""The 2015-12-05 Inception weights: found on this machine or downloaded, recognised by their hash."""

import sys
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from torch import Tensor

from robust_models.checkpoints.flags import Source
from robust_models.errors import UserError
from robust_models.runtime.files import sha256_of

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
WHOLE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
UP_TO_MIXED_7A = (
    "73d2fe8bd5c5415fe363183093af849d9a3273222ae7b9dd00540ed2b0d3b732"  # the same weights, batch norm folded
)
# The same bytes under the names that pytorch-fid and torch-fidelity give them.
CACHE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
FIRST_PART = "inception2015_upto_mixed7a.pth"  # enough for all but the 2048-d features


def find_weights(given: Path | str | None = None, *, first_part: bool = False) -> Path:
    """`given` (a file or a URL); else the copy of pytorch-fid or torch-fidelity in torch's hub cache; else a download.

    first_part: a file of the first layers will do, which is then looked for in the cache too.
    UserError where there is no such file, the download fails or brings something else.
    """
    text = str(given) if given is not None else URL
    if given is not None and urlsplit(text).scheme not in ("file", "http", "https"):
        if not Path(text).is_file():
            raise UserError(f"weights: no file {given}; {_where_from()}")
        return Path(text)
    if text.startswith("file:"):
        return find_weights(url2pathname(urlsplit(text).path))
    return cached_weights(first_part=first_part) or _download(text)


def cached_weights(*, first_part: bool = False) -> Path | None:
    """The network's file in torch's hub cache; None where there is none. first_part: see find_weights."""
    names = (*CACHE_NAMES, FIRST_PART) if first_part else CACHE_NAMES
    return next((file for name in names if (file := _cache() / name).is_file()), None)


def read_weights(path: Path) -> tuple[dict[str, Tensor], Source]:
    """The state dict (pytorch-fid's names) in a file of known hash. UserError for any other file."""
    source = Source(path.name, sha256_of(path))
    if source.sha256 not in (WHOLE, UP_TO_MIXED_7A):
        with path.open("rb") as file:
            page = file.read(64).lstrip().startswith(b"<")
        raise UserError(
            f"weights: {path} is {'a web page, ' if page else ''}not the FID Inception of 2015-12-05 "
            f"(sha256 {source.sha256[:8]}..., expected {WHOLE[:8]}...); {_where_from()}"
        )
    return torch.load(path, map_location="cpu", weights_only=True), source


def _download(url: str) -> Path:
    place = _cache() / CACHE_NAMES[0]
    print(f"weights: downloading {url} to {place} (91 MB; sha256 {WHOLE[:8]}... is checked)", file=sys.stderr)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(place), hash_prefix=WHOLE)
    except (URLError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"weights: the Inception network could not be had ({error}); {_where_from()}") from error
    return place


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _where_from() -> str:
    return f"download {URL} and give it as --weights FILE or put it in {_cache()}"
