"""What refinement towards a text costs with open_clip's networks at their size, with random weights.

    python -m benchmarks.image_text_cost ViT-B-32 RN50 ViT-L-14 [--views 4]

A line of JSON for each: CPU seconds to load both towers and embed the text, and per image and step; peak memory.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

IMAGES, STEPS = 2, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--views", type=int, default=None)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.pt"
            for work, arguments in ((write, (name, file)), (measure, (name, file, args.views))):
                process = spawn.Process(target=work, args=arguments)
                process.start()
                process.join()


def write(name: str, file: Path) -> None:
    import open_clip

    torch.save(open_clip.create_model(name, load_weights=False).state_dict(), file)


def measure(name: str, file: Path, views: int | None) -> None:
    from refine import refine
    from robust_models import load
    from robust_models.runtime.version import environment

    start = time.process_time()
    model = load(f"open_clip:{name}:{file}", prompt="a red ship at sea", views=views, quiet=True)
    load_s = time.process_time() - start
    loaded_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    x = torch.rand(IMAGES, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(IMAGES, dtype=torch.int64)
    start = time.process_time()
    refine(model, x, y, eps=3, steps=STEPS)
    found = {
        "model": name,
        "arch": model.description.arch,
        "px": model.image_size,
        "views": views or 1,
        "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "load_cpu_s": round(load_s, 1),
        "cpu_s_per_image_step": round((time.process_time() - start) / IMAGES / STEPS, 3),
        "peak_mb_loading": round(loaded_mb),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found | environment()), flush=True)


if __name__ == "__main__":
    main()
