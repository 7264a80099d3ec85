"""The classifier inside a diffusion sampler, or after it, or both: what each gains at equal passes of the classifier.

    python -m benchmarks.guidance --generator diffusers:runs/edm/pipeline --data TEST.npz --out runs/guidance
        [--ckpt cifar10-l2-small] [--num-images 500] [--steps 18] [--eps .25 .5 1 2] [--scale 1 10]
        [--noised runs/noised/classifier.safetensors] [--spaces efficientnet-lite0-128] [--weights FILE]

The same seeds and classes for all: raw samples; refined afterwards; guided by the denoised estimates, unit steps
(--eps) or the plain gradient straight through (--scale), or that of a classifier of noised images (--noised) at the
same scales; and half of the passes inside, half afterwards. Distances (KID, or Frechet where images are more than
features) to --data less that of the raw samples, 95 % intervals of the paired bootstrap, precision and recall in the
first space; "inside less after" is the paired difference of the two ways to spend the passes. Sets that are there are
not made again. One line of JSON at the end.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.study.report.compare import Comparison
from refine.config import RefineConfig
from refine.generators.generator_flags import SIGMAS
from refine.guidance import line_of
from refine.pipeline import refine_set
from robust_models import load_dataset, open_images
from robust_models.features import FeatureExtractor, open_features
from robust_models.metrics import precision_recall
from robust_models.metrics.kernel_resampled import reference_for
from robust_models.runtime.version import environment

BATCH = 100
RAW = "raw"
PER_STEP = 2  # PGD steps at each denoising step that is guided: an even number, half of which is one step less


@dataclass(frozen=True)
class Way:
    """One way to spend passes of the classifier: the flags of refine, and how many forwards and backwards it takes."""

    name: str
    passes: int
    flags: dict[str, Any] = field(default_factory=dict)


def ways(args: argparse.Namespace, guided: int) -> Iterator[Way]:
    """guided: how many denoising steps lie within the noise levels at which guidance works."""
    budget = PER_STEP * guided
    yield Way(RAW, 0, {"eps": 0})
    for eps in args.eps:
        yield Way(f"after, eps {eps:g}", budget, {"eps": eps, "steps": budget})
        yield Way(f"inside, eps {eps:g}", budget, {"eps": 0, "guide_eps": eps, "guide_steps": PER_STEP})
        half = {"eps": eps, "steps": budget // 2, "guide_eps": eps, "guide_steps": PER_STEP // 2}
        yield Way(f"both, eps {eps:g}", budget, half)
    for scale in args.scale:
        yield Way(f"straight through, scale {scale:g}", guided, {"eps": 0, "guide_scale": scale})
        if args.noised is not None:
            flags = {"ckpt": args.noised, "eps": 0, "guide_scale": scale}
            yield Way(f"of noised images, scale {scale:g}", guided, flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, help="diffusers:FOLDER")
    parser.add_argument("--data", required=True, help="real images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the samples")
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--noised", default=None)
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=18, help="denoising steps")
    parser.add_argument("--eps", nargs="*", type=float, default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--scale", nargs="*", type=float, default=[])
    parser.add_argument("--spaces", nargs="+", default=["efficientnet-lite0-128"])
    parser.add_argument("--weights", type=Path, default=None, help="of the Inception network")
    args = parser.parse_args()
    measured = list(ways(args, guided_steps(args.generator, args.steps)))
    sets = {way.name: made(way, args) for way in measured}
    real = load_dataset(args.data, "test").x_u8
    spaces = [open_features(s, weights=args.weights if s.startswith("inception") else None) for s in args.spaces]
    references = [features(space, real) for space in spaces]
    seen = [{name: features(space, x_u8) for name, x_u8 in sets.items()} for space in spaces]
    compared = [
        Comparison(((name, rows.numpy()) for name, rows in one.items()), reference_for(reference, args.num_images))
        for one, reference in zip(seen, references, strict=True)
    ]
    print(f"| way | passes | {' | '.join(args.spaces)} | precision | recall |\n|{'---|' * (4 + len(spaces))}")
    rows = []
    for way in measured:
        others = [f"{one.distance(way.name).value:.4g}" for one in compared]
        if way.name != RAW:
            others = [words(one, way.name, RAW) for one in compared]
        precision, recall = precision_recall(seen[0][way.name], references[0])
        print(f"| {way.name} | {way.passes} | {' | '.join(others)} | {precision:.3f} | {recall:.3f} |", flush=True)
        found = [asdict(one.difference(way.name, RAW)) for one in compared]
        rows.append([way.name, way.passes, found, precision, recall])
    for eps in args.eps:
        between = [words(one, f"inside, eps {eps:g}", f"after, eps {eps:g}") for one in compared]
        print(f"| inside less after, eps {eps:g} | | {' | '.join(between)} | | |")
    print(json.dumps({"rows": rows, "measure": compared[0].measure, "environment": environment()}))


def guided_steps(generator: str, steps: int) -> int:
    """How many of a pipeline's denoising steps lie within the noise levels of guidance."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    scheduler: Any = DiffusionPipeline.from_pretrained(generator.partition(":")[2]).scheduler
    scheduler.set_timesteps(steps)
    count = 0
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = i  # as its i-th step finds it
        count += SIGMAS[0] <= line_of(scheduler, t).sigma <= SIGMAS[1]
    return count


def made(way: Way, args: argparse.Namespace) -> Tensor:
    """The images [N,3,H,W] uint8, from the folder of samples where they are there."""
    out = args.out / f"{way.name.replace(', ', '-').replace(' ', '-')}.npz"
    if not out.exists():
        sampled = {"generator": args.generator, "num_images": args.num_images, "generator_steps": args.steps}
        refine_set(RefineConfig(**{"ckpt": args.ckpt, "out": out, **sampled, **way.flags}))
    images = open_images(out)
    return images.read(0, len(images))


def features(space: FeatureExtractor, x_u8: Tensor) -> Tensor:
    return torch.cat([space(part).cpu() for part in x_u8.split(BATCH)])


def words(one: Comparison, name: str, other: str) -> str:
    """ "-0.012 (-0.020 to -0.004)"."""
    found = one.difference(name, other)
    low, high = found.interval
    return f"{found.value:+.3g} ({low:+.3g} to {high:+.3g})"


if __name__ == "__main__":
    main()
