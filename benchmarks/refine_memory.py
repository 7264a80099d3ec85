"""Peak memory of `bigroc refine` by the number of images: a stream should need no more for ten times as many.

    python -m benchmarks.refine_memory [--num-images 20000 200000] [--size 16] [--kind npz]
    python -m benchmarks.refine_memory --task superres --factor 2 --grid GRID.png --trajectory WAY.gif

A process for each number, on a random set of that size, a network of random weights and one step; the peak is that of
the whole process, as the kernel counts it (resident pages, mapped files included). Further flags go to the command.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from robust_models import Description, RobustClassifier, save
from robust_models.runtime.version import environment

BATCH = 4096
CLASSIFIER_SIZE = 8  # pixels: memory is the question, so the network is as fast as one can be


def write_set(path: Path, n: int, size: int) -> None:
    """n random images as an .npy [N,H,W,3], written in parts."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, BATCH):
            file.write(rng.integers(0, 256, (min(BATCH, n - start), size, size, 3), dtype=np.uint8).tobytes())


def zipped(npy: Path) -> Path:
    """The same images as an .npz."""
    npz = npy.with_suffix(".npz")
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_STORED) as archive:
        archive.write(npy, "arr_0.npy")
    npy.unlink()
    return npz


def peak_of(command: list[str]) -> tuple[float, float]:
    """(peak resident MiB, seconds) of a command that must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--kind", choices=("npz", "npy"), default="npz")
    parser.add_argument("--targets", default="pseudo")
    args, more = parser.parse_known_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "tiny.safetensors")
        description = Description("preact_resnet10_w16", tuple("abcdefghij"), CLASSIFIER_SIZE)
        save(RobustClassifier.from_description(description), checkpoint)
        for n in args.num_images:
            images = Path(folder, f"{n}.npy")
            write_set(images, n, args.size)
            images = zipped(images) if args.kind == "npz" else images
            out = images.with_name(f"out{images.suffix}")
            words = f"-m refine --ckpt {checkpoint} --input {images} --out {out} --eps 1 --steps 1 --device cpu"
            command = [sys.executable, *words.split(), "--targets", args.targets, "--overwrite", *more]
            peak_mib, seconds = peak_of(command)
            print(f"{n:9,} images  {peak_mib:8.1f} MiB  {seconds:7.1f} s", flush=True)
            rows.append({"n": n, "peak_mib": round(peak_mib, 1), "seconds": round(seconds, 1)})
            images.unlink()
    growth = rows[-1]["peak_mib"] / rows[0]["peak_mib"] - 1
    print(f"{growth:+.1%} from the first to the last")
    print(json.dumps({"rows": rows, "growth": growth, **vars(args), "more": more, "environment": environment()}))


if __name__ == "__main__":
    main()
