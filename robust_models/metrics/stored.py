"""Frechet statistics on disk: an .npz with mu [D] and sigma [D,D], as pytorch-fid and most tools write it.

guided-diffusion's have mu_s, sigma_s (the sFID's) and images besides; ours n, features, protocol and sha256, so that a
comparison with other features is refused.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from robust_models.errors import UserError
from robust_models.metrics.frechet import FrechetStatistics
from robust_models.runtime.files import check_replaces, located, whole_file


@dataclass(frozen=True)
class StoredStatistics:
    """mean [D] and covariance [D,D], float64; what a foreign file does not say is None."""

    path: Path
    mean: np.ndarray
    covariance: np.ndarray
    n: int | None = None
    features: str | None = None
    protocol: str | None = None
    sha256: str | None = None  # of the network's weights or checkpoint
    spatial: "StoredStatistics | None" = None  # of the sFID's features


def write_statistics(
    out: Path,
    statistics: FrechetStatistics,
    *,
    features: str,
    protocol: str,
    sha256: str,
    spatial: FrechetStatistics | None = None,
) -> None:
    """Writes an .npz, whole or not at all. UserError where a file stands at `out` that is no such statistics."""
    check_replaces(out, _is_ours, "statistics file of this project")
    arrays = {"mu": statistics.mean, "sigma": statistics.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    tags = {"features": features, "protocol": protocol, "sha256": sha256}
    with whole_file(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, n=np.array(statistics.n), **{name: np.array(tag) for name, tag in tags.items()})  # type: ignore[arg-type]


def _is_ours(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {"mu", "sigma", "n", "sha256"} <= set(arrays.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError):  # of an .npy comes a bare array
        return False


def read_statistics(path: Path | str) -> StoredStatistics | None:
    """The statistics stored at `path`; None where it is something else (a folder, an image set, no .npz).

    UserError where mu or sigma is missing, not finite, or of a shape that does not fit.
    """
    path = located(path)
    if path.is_file() and _is_pickle_of_statistics(path):
        raise UserError(
            f"{path}: a pickle of mu and sigma, which is never opened; store them with "
            "numpy.savez(FILE, mu=mu, sigma=sigma) and give that .npz"
        )
    if not zipfile.is_zipfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not {"mu", "sigma"} & set(arrays.files):
                return None
            found = {name: arrays[name] for name in arrays.files if name in _NAMES}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: not readable statistics ({error})") from error
    tags = {name: str(found[name]) for name in ("features", "protocol", "sha256") if name in found}
    n = int(found["n"]) if "n" in found and found["n"].ndim == 0 else None
    spatial = None
    if {"mu_s", "sigma_s"} & set(found):
        spatial = StoredStatistics(path, *_moments(path, found, "mu_s", "sigma_s"), n)
    return StoredStatistics(path, *_moments(path, found, "mu", "sigma"), n, **tags, spatial=spatial)


def _is_pickle_of_statistics(path: Path) -> bool:
    """Whether a pickle, plain or torch's, names mu and sigma near its beginning; nothing of it is run."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            head = archive.open(pickles[0]).read(_HEAD_BYTES) if pickles else b""
    return head[:1] == b"\x80" and all(name in head for name in (b"mu", b"sigma"))


def _moments(path: Path, found: dict[str, np.ndarray], mu: str, sigma: str) -> tuple[np.ndarray, np.ndarray]:
    missing = [name for name in (mu, sigma) if name not in found]
    if missing:
        raise UserError(f"{path}: statistics without {missing[0]!r}; expected {mu} [D] and {sigma} [D,D]")
    mean, covariance = found[mu], found[sigma]
    if mean.ndim != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: {mu} is {list(mean.shape)}, {sigma} {list(covariance.shape)}; expected [D] and [D,D]")
    if not all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in (mean, covariance)):
        raise UserError(f"{path}: {mu} and {sigma} must be finite real numbers")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    _check_covariance(path, sigma, covariance)
    return mean, covariance


def _check_covariance(path: Path, name: str, covariance: np.ndarray) -> None:
    """UserError unless it is symmetric and has no eigenvalue below 0, both up to the rounding of float32."""
    scale = float(np.abs(covariance).max())
    gap = float(np.abs(covariance - covariance.T).max())
    if gap > ROUNDING * scale:
        raise UserError(f"{path}: {name} is not symmetric (entries differ by {gap:.3g}), so it is no covariance")
    shift = max(ROUNDING * scale, 1e-300) * np.eye(len(covariance))
    shifted = torch.from_numpy((covariance + covariance.T) / 2 + shift)
    if torch.linalg.cholesky_ex(shifted)[1]:
        lowest = float(torch.linalg.eigvalsh(shifted)[0])
        raise UserError(f"{path}: {name} has negative eigenvalues (the lowest is {lowest:.3g}), so it is no covariance")


_HEAD_BYTES = 1 << 16
ROUNDING = 1e-4  # of the largest entry: what float32 may have lost
_NAMES = ("mu", "sigma", "mu_s", "sigma_s", "n", "features", "protocol", "sha256")
