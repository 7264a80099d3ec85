"""Image scores: speed against the packages they agree with, on the same numbers, alternating in one run.

    python -m benchmarks.eval frechet [--num-images 1000 10000]
    python -m benchmarks.eval quality --num-images 2000 --weights FILE
    python -m benchmarks.eval several --num-images 500 --weights FILE
    python -m benchmarks.eval memory

frechet: the step from moments to distance, d = 2048, against scipy's sqrtm as pytorch-fid calls it. quality: the whole
FID of two sets, against pytorch-fid's and torch-fidelity's, features, resizing and distance together. several: five
metrics in one call against the dearest alone. memory: the growth of our process with N. Without --weights the network's
weights are random: speed does not depend on them. pytorch-fid: bash tests/oracles/install_quality.sh.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import sqrtm

from eval.quality.config import QualityConfig
from eval.quality.run import run_quality
from robust_models.features import inception_weights
from robust_models.metrics import FrechetReference, FrechetStatistics, Moments, StoredStatistics, frechet_distance
from robust_models.runtime.files import sha256_of
from robust_models.runtime.version import environment

DIM = 2048
ORACLES = Path(__file__).parents[1] / ".venv" / "oracles" / "quality"


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def frechet(args: argparse.Namespace) -> dict:
    rows = {}
    for n in args.num_images:
        ours, reference = (_moments(n, seed) for seed in (1, 2))
        s_a, s_b = ours.covariance, reference.covariance
        cached = FrechetReference(reference)
        cached.distance(ours)
        gap = ours.mean - reference.mean

        def by_sqrtm(s_a=s_a, s_b=s_b, gap=gap) -> float:
            return float(gap @ gap + np.trace(s_a) + np.trace(s_b) - 2 * np.trace(sqrtm(s_a @ s_b)).real)

        difference = abs(frechet_distance(ours, reference) / by_sqrtm() - 1)
        theirs = seconds(by_sqrtm, 1)
        cold = seconds(lambda a=ours, b=reference: frechet_distance(a, b), args.repeats)
        warm = seconds(lambda a=ours, b=cached: b.distance(a), args.repeats)
        rows[n] = {"sqrtm_s": theirs, "ours_s": cold, "cached_reference_s": warm, "relative_difference": difference}
        print(
            f"N = {n:6}: sqrtm {theirs:6.2f} s, ours {cold:.2f} s ({theirs / cold:.0f}x), with the reference's factor "
            f"cached {warm:.2f} s ({theirs / warm:.0f}x); relative difference {difference:.1e}",
            flush=True,
        )
    return rows


def _moments(n: int, seed: int) -> Moments:
    """Summed up before the clock runs, as sqrtm's covariances are; few samples are kept as they are."""
    found = _statistics(n, seed)
    few = found.samples is not None
    return found if few else StoredStatistics(Path("memory"), found.mean, found.covariance)


def _statistics(n: int, seed: int) -> FrechetStatistics:
    mix = np.random.default_rng(0).standard_normal((DIM, DIM)) / DIM**0.5
    found = FrechetStatistics(DIM)
    found.update(np.maximum(np.random.default_rng(seed).standard_normal((n, DIM)) @ mix + 0.3, 0))
    return found


def quality(args: argparse.Namespace) -> dict:
    """Whole calls, one each: they are long."""
    n = args.num_images[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _weights(args, folder)
        arrays = {side: _write_sets(folder / side, n, seed) for seed, side in enumerate(("a", "b"))}
        calls: dict[str, Callable[[], float]] = {
            "ours": lambda: _ours(folder, weights, "fid", "pytorch-fid"),
            "ours, tf": lambda: _ours(folder, weights, "fid", "tf"),
            "pytorch-fid": lambda: _pytorch_fid(folder, weights),
            "torch-fidelity": lambda: _torch_fidelity(arrays, weights),
        }
        found = {}
        for label, call in calls.items():
            start = time.perf_counter()
            value = call()
            found[label] = {"fid": value, "s": time.perf_counter() - start}
            print(f"{label:15} FID {value:.6g} in {found[label]['s']:.1f} s", flush=True)
    for ours, theirs in (("ours", "pytorch-fid"), ("ours, tf", "torch-fidelity")):
        print(f"{ours}: {found[theirs]['s'] / found[ours]['s']:.2f}x the speed of {theirs}")
    return found


def several(args: argparse.Namespace) -> dict:
    n = args.num_images[0]
    every = ("fid", "is", "kid", "prc", "sfid")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _weights(args, folder)
        for seed, side in enumerate(("a", "b")):
            _write_sets(folder / side, n, seed)
        wishes = [*every, ",".join(every)]
        _ours(folder, weights, "fid", "tf")  # the first call pays for what all need
        found = {m: seconds(lambda m=m: _ours(folder, weights, m, "tf"), 1) for m in wishes}
    dearest = max(found[m] for m in every)
    for m, wall_s in found.items():
        print(f"{m:22} {wall_s:7.1f} s  {wall_s / dearest:.2f}x the dearest alone")
    return found


def memory(args: argparse.Namespace) -> dict:
    """Peak of this process while statistics of N features are summed up."""
    found, rng = {}, np.random.default_rng(0)
    batch = rng.standard_normal((500, DIM))
    running = FrechetStatistics(DIM)
    for n in range(500, 20_001, 500):
        running.update(batch)
        if n in (5_000, 10_000, 20_000):
            found[n] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"N = {n:6}: peak {found[n]:.0f} MiB", flush=True)
    return found


def _weights(args: argparse.Namespace, folder: Path) -> Path:
    if args.weights is not None:
        return args.weights
    from tests.inception import write_random_weights

    path = folder / "random.pth"
    write_random_weights(path)
    inception_weights.WHOLE = sha256_of(path)
    return path


def _write_sets(folder: Path, n: int, seed: int) -> np.ndarray:
    """A folder of n 32x32 PNGs (what pytorch-fid reads); the images, uint8 [n,32,32,3]."""
    from PIL import Image

    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256 - 40 * seed, (n, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    return pixels


def _ours(folder: Path, weights: Path, metrics: str, protocol: str) -> float:
    config = QualityConfig(
        images=folder / "a",
        reference=folder / "b",
        metrics=metrics,
        protocol=protocol,
        weights=str(weights),
        cache="none",
        device="cpu",
    )  # type: ignore[arg-type]
    return run_quality(config).get("fid", 0.0)


def _pytorch_fid(folder: Path, weights: Path) -> float:
    sys.path.append(str(ORACLES))
    from pytorch_fid import fid_score, inception  # type: ignore[import-not-found]

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(fid_score.calculate_fid_given_paths([str(folder / "a"), str(folder / "b")], 50, "cpu", DIM, 0))


def _torch_fidelity(arrays: dict[str, np.ndarray], weights: Path) -> float:
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, pixels: np.ndarray) -> None:
            self.x_u8 = torch.from_numpy(pixels).permute(0, 3, 1, 2)

        def __len__(self) -> int:
            return len(self.x_u8)

        def __getitem__(self, i: int) -> torch.Tensor:
            return self.x_u8[i]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch_fidelity.calculate_metrics(
            input1=Images(arrays["a"]),
            input2=Images(arrays["b"]),
            fid=True,
            cuda=False,
            verbose=False,
            cache=False,
            batch_size=50,
            feature_extractor_weights_path=str(weights),
        )
    return found["frechet_inception_distance"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = {"frechet": frechet, "quality": quality, "several": several, "memory": memory}
    parser.add_argument("what", choices=works)
    parser.add_argument("--num-images", type=int, nargs="+", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    args.num_images = args.num_images or ([1000, 10_000] if args.what == "frechet" else [2000])
    found = works[args.what](args)
    print(json.dumps({args.what: found, "num_images": args.num_images, "environment": environment()}))


if __name__ == "__main__":
    main()
