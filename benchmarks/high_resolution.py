"""Refinement and every synthesis task at 512 and 1024 pixels with an ImageNet-size classifier: peak memory and time.

    python -m benchmarks.high_resolution [--sizes 512 1024] [--steps 2] [--tasks refine inpaint ...]

A ResNet-50 of random weights, made for 224 pixels. It sees the images resized to those ("resized"), or as they are
("native", --image-size). A process for each row, one image; the peak is that of the whole process, imports and weights
included. CPU seconds per step are the difference between runs of --steps and of three times as many.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import resnet50

from refine.synthesis.registry import TASKS
from robust_models.runtime.version import environment

WITHOUT = ("seeds", "features", "explain")  # tasks that take no steps


def write_image(path: Path, side: int) -> Path:
    """A picture of coloured blobs."""
    levels = np.random.default_rng(0).integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def words_of(task: str, image: Path, side: int) -> list[str]:
    """The command's own flags."""
    quarter = side // 4
    own = {
        "generate": ["--start-from", str(image), "--num-images", "1", "--classes", "7"],
        "inpaint": ["--hole", str(quarter)],
        "paint": ["--rectangle", f"{quarter},{quarter},{quarter},{quarter}", "--targets", "class:7"],
        "superres": ["--factor", "2"],
        "translate": ["--target-class", "7"],
        "sketch": ["--target", "7"],
        "counterfactual": ["--targets", "class:7", "--eps", "5"],
        "refine": ["--targets", "class:7", "--eps", "10"],
    }.get(task, [])
    task_words = [] if task == "refine" else ["--task", task]
    input_words = [] if task == "generate" else ["--input", str(image)]
    return [*task_words, *input_words, *own]


def measured(words: list[str]) -> tuple[float, float]:
    """(peak resident GB, CPU seconds) of a command that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    ended = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)}: {ended.stderr[-400:]}")
    return float(ended.stdout.split()[-1]) / 2**20, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


PEAK = """
import resource, sys
import refine.cli
status = refine.cli.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=2)
    tasks = ["refine", *(name for name in TASKS if name not in WITHOUT)]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        checkpoint = Path(folder, "resnet50.pt")
        torch.save(resnet50().state_dict(), checkpoint)
        for side in args.sizes:
            for task in args.tasks:
                out = Path(folder, "out.png" if task == "refine" else "out.npz")
                asked = side // 2 if task == "superres" else side
                image = write_image(Path(folder, f"{asked}.png"), asked)
                row: dict[str, object] = {"task": task, "px": side}
                for way in ("resized", "native"):
                    words = ["--ckpt", str(checkpoint), "--normalize", "imagenet", "--out", str(out), "--overwrite"]
                    words += ["--device", "cpu", *words_of(task, image, side)]
                    words += ["--image-size", str(side)] if way == "native" else []
                    runs = [measured([*words, "--steps", str(steps)]) for steps in (args.steps, 3 * args.steps)]
                    per_step = (runs[1][1] - runs[0][1]) / (2 * args.steps)
                    row |= {f"{way}_peak_gb": round(runs[1][0], 2), f"{way}_cpu_s_per_step": round(per_step, 2)}
                print(json.dumps(row), flush=True)
    print(json.dumps({"environment": environment(), "steps": args.steps}))


if __name__ == "__main__":
    main()
