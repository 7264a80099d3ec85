"""Images per second of every way to load the same images: ours, and torchvision's folder with Pillow as is usual.

    python -m benchmarks.loaders [--images 10000] [--size 32] [--workers 2] [--rounds 3] [--seconds 2]

The ways take turns in one process. Each has loaded some batches before its clock starts: what starting workers and
compiling cost is reported apart, as the first batch. "plain" is ImageFolder, PILToTensor and a shuffling DataLoader.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robust_models.datasets import load_dataset, open_dataset
from robust_models.datasets.beton import write_beton
from robust_models.runtime.device import pick_device
from robust_models.runtime.version import environment
from train.loaders.base import Batch, LoaderSettings, usable_cores
from train.start import make_loader

WARM_UP = 8  # batches


def write_images(root: Path, count: int, size: int, suffix: str) -> None:
    """Smooth noise, which compresses about as photographs do, in ten class folders."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
        noise.resize((size, size), Image.Resampling.BICUBIC).save(root / str(i % 10) / f"{i}{suffix}")


def plain(root: Path, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    loader = DataLoader(
        ImageFolder(str(root), PILToTensor()),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    while True:
        for x_u8, y in loader:
            yield x_u8.to(device, non_blocking=True), y.to(device, non_blocking=True)


def rate(batches: Iterator[Batch], seconds: float, device: torch.device) -> float:
    """Images per second over that many seconds at least."""
    images, start = 0, time.perf_counter()
    while (wall_s := time.perf_counter() - start) < seconds:
        images += len(next(batches)[1])
    if device.type == "cuda":
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - start
    return images / wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--suffix", default=".png", choices=[".png", ".jpg"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each round")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    settings = LoaderSettings(args.batch_size, 0, device, args.workers)

    with tempfile.TemporaryDirectory() as folder:
        root, beton = Path(folder) / "set", Path(folder) / "set.beton"
        write_images(root, args.images, args.size, args.suffix)
        data = load_dataset(str(root), "train")
        write_beton(beton, iter(data.x_u8.permute(0, 2, 3, 1).numpy()), data.y.numpy(), data.class_names)
        lazy, packed = (open_dataset(str(path), "train") for path in (root, beton))
        ways = {
            "plain": lambda: plain(root, args.batch_size, args.workers, device),
            "stream": lambda: make_loader("stream", lazy, settings).batches(0),
            "resident": lambda: make_loader("resident", data, settings).batches(0),
            "ffcv": lambda: make_loader("ffcv", packed, settings).batches(0),
        }
        running, first_s = {}, {}
        for name, start in ways.items():
            began = time.perf_counter()
            running[name] = start()
            next(running[name])
            first_s[name] = time.perf_counter() - began
            for _ in range(WARM_UP):
                next(running[name])
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, batches in running.items():
                # What was read ahead while the others ran is not this way's pace.
                rate(batches, args.seconds / 4, device)
                rates[name].append(rate(batches, args.seconds, device))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{args.images:,} {args.suffix} images of {args.size} px, {args.workers} workers, medians of {args.rounds}")
    for name, median in medians.items():
        times = statistics.median(ours / base for ours, base in zip(rates[name], rates["plain"], strict=True))
        print(f"  {name:10} {median:12,.0f} images/s ({times:6.1f}x)   first batch {first_s[name]:6.2f} s")
    print(json.dumps({"rates": rates, "first_s": first_s, "environment": environment(), **vars(args)}))


if __name__ == "__main__":
    main()
