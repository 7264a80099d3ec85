"""Judges that come as Python packages: images/s against the same network as timm has it, and all metrics in one call.

    python -m benchmarks.judges features [--num-images 400]
    python -m benchmarks.judges sheet --num-images 1000

features: resizing and network together, batches of 50, one thread, the ways in turn. sheet: all metrics of one feature
space in one call against the dearest of them alone, N images against N; every call computes its features. Seconds are
of CPU.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.quality.run import image_quality
from robust_models.features import open_features
from robust_models.features.efficientnet import PACKAGED, SIDE, filled, find_weights
from robust_models.runtime.version import environment

BATCH = 50


def features(args: argparse.Namespace) -> dict:
    """Images per second of CPU of each way, medians over the repeats."""
    name = next(iter(PACKAGED))
    network = filled(PACKAGED[name].model, torch.load(find_weights(name), map_location="cpu", weights_only=True))

    def plain(x_u8: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.interpolate(x_u8.float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
            return network.forward_head(network.forward_features(x / 127.5 - 1), pre_logits=True)

    ways: dict[str, Callable[[Tensor], Tensor]] = {"plain eager": plain, "ours": open_features(name)}
    x_u8 = torch.randint(0, 256, (args.num_images, 3, 32, 32), dtype=torch.uint8)
    torch.set_num_threads(1)
    seen = {way: torch.cat([work(part) for part in x_u8[:BATCH].split(BATCH)]) for way, work in ways.items()}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, work in ways.items():
            start = time.process_time()
            for part in x_u8.split(BATCH):
                work(part)
            spent[way].append(time.process_time() - start)
    rate = {way: args.num_images / statistics.median(s) for way, s in spent.items()}
    gap = float((seen["ours"] - seen["plain eager"]).abs().max() / seen["plain eager"].abs().max())
    for way, per_s in rate.items():
        print(f"{way:12} {per_s:6.1f} images/s, {per_s / rate['plain eager']:.2f}x")
    print(f"largest difference {gap:.1e} of the largest feature")
    return {"images_per_s": rate, "difference": gap}


def sheet(args: argparse.Namespace) -> dict:
    """Seconds of CPU (others' work does not count) of each metric alone and of all in one call."""
    names = ("fid", "is", "kid", "prc", "density-coverage", "vendi")
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256 - 40 * i, (args.num_images, 32, 32, 3), dtype=np.uint8) for i in range(2)]
    space = open_features(next(iter(PACKAGED)))
    image_quality(pixels[0][:50], pixels[1][:50], features=space)  # the first call pays for what all need
    cpu: dict[str, list[float]] = {wish: [] for wish in (*names, ",".join(names))}
    for _ in range(args.repeats):
        for wish, found in cpu.items():
            start = time.process_time()
            image_quality(*pixels, features=space, metrics=wish.split(","))  # type: ignore[arg-type]
            found.append(time.process_time() - start)
    medians = {wish: statistics.median(found) for wish, found in cpu.items()}
    dearest = max(medians[name] for name in names)
    for wish, cpu_s in medians.items():
        print(f"{wish:40} {cpu_s:7.1f} s  {cpu_s / dearest:.2f}x the dearest alone")
    return {"cpu_s": medians, "of_the_dearest": medians[",".join(names)] / dearest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = {"features": features, "sheet": sheet}
    parser.add_argument("what", choices=works)
    parser.add_argument("--num-images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    found = works[args.what](args)
    print(json.dumps({args.what: found, "num_images": args.num_images, "environment": environment()}))


if __name__ == "__main__":
    main()
