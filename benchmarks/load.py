"""Cost of loading a checkpoint: ours against torch.load on the same file, each in a process of its own, alternating.

    python -m benchmarks.load [--arch torchvision:resnet50] [--repeats 7] [--threads 1]

Each process is forked from one that has only imported (Linux). Time is the call's, by the clock and of the processor;
memory is the growth of the process's peak. The file holds the network and SGD's momentum, in torch.save's zip and in
its older stream.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_models import load
from robust_models.architectures import build
from robust_models.checkpoints.torch_format import read_torch_file
from robust_models.runtime.version import environment


def _torch_filled(path: Path, arch: str) -> nn.Module:
    content = torch.load(path, weights_only=True)
    network = build(arch, num_classes=1000)
    network.load_state_dict(content["state_dict"])
    return network.eval()


WAYS: dict[str, Callable[[Path, str], object]] = {
    "torch.load": lambda path, arch: torch.load(path, weights_only=True),
    "ours, file only": lambda path, arch: read_torch_file(path),
    "torch.load, build, fill": _torch_filled,
    "ours, classifier": lambda path, arch: load(path, arch=arch),
}
PAIRS = (("torch.load", "ours, file only"), ("torch.load, build, fill", "ours, classifier"))


def write(path: Path, arch: str, *, legacy: bool) -> None:
    """A state dict with SGD's momentum."""
    network = build(arch, num_classes=1000)
    momentum = {i: {"momentum_buffer": torch.randn_like(p)} for i, p in enumerate(network.parameters())}
    group = {"lr": 0.1, "momentum": 0.9, "params": list(momentum)}
    content = {
        "state_dict": network.state_dict(),
        "optimizer": {"state": momentum, "param_groups": [group]},
        "epoch": 3,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def measure(way: str, path: Path, arch: str) -> dict[str, float]:
    """Seconds and MB of one call in this process."""
    before, start, cpu_start = _peak_kb(), time.perf_counter(), time.process_time()
    result = WAYS[way](path, arch)
    wall_s, cpu_s, growth = time.perf_counter() - start, time.process_time() - cpu_start, _peak_kb() - before
    del result
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": growth / 1024}


def _peak_kb() -> int:
    """Of this process; getrusage's would begin with that of the process that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def apart(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's result in a process of its own."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=lambda: results.put(function(*args, **kwargs)))
    process.start()
    result = results.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="torchvision:resnet50")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.arch.startswith("torchvision:"):
        import torchvision.models  # noqa: F401  not part of the cost

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("zip", "stream"):
            path = Path(folder) / f"{layout}.pt"
            apart(write, path, args.arch, legacy=layout == "stream")
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(args.repeats):
                for way in WAYS:
                    runs[way].append(apart(measure, way, path, args.arch))
            print(f"{layout}: {path.stat().st_size / 1e6:.0f} MB, medians of {args.repeats}")
            for pair in PAIRS:
                medians = {
                    way: {key: statistics.median(run[key] for run in runs[way]) for key in runs[way][0]} for way in pair
                }
                for way, row in medians.items():
                    ratios = {key: row[key] / medians[pair[0]][key] for key in row}
                    print(
                        f"  {way:24} {row['wall_s']:7.3f} s ({ratios['wall_s']:4.2f}x)  "
                        f"{row['cpu_s']:7.3f} s of CPU ({ratios['cpu_s']:4.2f}x)  "
                        f"{row['peak_mb']:6.0f} MB ({ratios['peak_mb']:4.2f}x)",
                        flush=True,
                    )
                    rows.append({"layout": layout, "way": way, **row})
    print(json.dumps({"rows": rows, "repeats": args.repeats, "environment": environment()}))


if __name__ == "__main__":
    main()
