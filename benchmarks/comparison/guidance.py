"""The classifier inside a diffusion sampler, after it, or both: what each gains at equal passes of the classifier.

    python -m benchmarks.comparison.guidance --generator diffusers:runs/edm/pipeline --test TEST.npz --out runs/guidance
        [--noised runs/noised/classifier.safetensors --scale 1,10]

The same seeds and classes for all: raw samples; refined afterwards; guided by the denoised estimates, unit steps
(--eps) or the plain gradient straight through (--scale), or that of a classifier of noised images (--noised) at the
same scales; and half of the passes inside, half afterwards. Distances to --test less that of the raw samples, with 95 %
intervals of the paired bootstrap; precision and recall in the first space. Sets that are there are not made again.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from benchmarks.comparison.judged import JudgeFlags, Judges, claim, words
from refine.config import RefineConfig
from refine.generators.generator_flags import SIGMAS, GeneratorFlags
from refine.generators.pipelines import UnetSampler, open_pipeline
from refine.guidance import Guidance, line_of
from refine.pipeline import refine_set
from robust_models.errors import UserError
from robust_models.metrics import precision_recall
from robust_models.runtime.command import Command, Summary, run
from robust_models.runtime.config import STRICT, AtLeastOne, ImageCount, Positive, resolve, several
from robust_models.runtime.device import pick_device

RAW = "raw"
PER_STEP = 2  # PGD steps at each denoising step that is guided: an even number, half of which is one step less
Several = Annotated[tuple[Positive, ...], BeforeValidator(several)]


@pydantic_dataclass(frozen=True, config=STRICT, kw_only=True)
class GuidanceConfig(JudgeFlags):
    """Comparison: which diffusion model, which classifier, and how far."""

    generator: str = Field(description="diffusers:NAME_OR_FOLDER, a pipeline of pixels")
    out: Path = Field(description="the folder of the samples")
    ckpt: str = Field(default="cifar10-l2-small", description="the classifier that guides and refines")
    noised: str | None = Field(default=None, description="a classifier of noised images, for --scale")
    num_images: ImageCount = 500
    steps: AtLeastOne = Field(default=18, description="denoising steps")
    eps: Several = Field(default=(0.25, 0.5, 1.0, 2.0), description="radii, pixels in [0,1]")
    scale: Several = Field(default=(), description="of plain gradients")


@dataclass(frozen=True)
class Way:
    """One way to spend passes of the classifier: the flags of refine, and how many forwards and backwards it takes."""

    name: str
    passes: int
    flags: dict[str, Any] = field(default_factory=dict)


def ways(config: GuidanceConfig, guided: int) -> Iterator[Way]:
    """guided: how many denoising steps lie within the noise levels at which guidance works."""
    budget = PER_STEP * guided
    yield Way(RAW, 0, {"eps": 0})
    for eps in config.eps:
        yield Way(f"after, eps {eps:g}", budget, {"eps": eps, "steps": budget})
        yield Way(f"inside, eps {eps:g}", budget, {"eps": 0, "guide_eps": eps, "guide_steps": PER_STEP})
        half = {"eps": eps, "steps": budget // 2, "guide_eps": eps, "guide_steps": PER_STEP // 2}
        yield Way(f"both, eps {eps:g}", budget, half)
    for scale in config.scale:
        yield Way(f"straight through, scale {scale:g}", guided, {"eps": 0, "guide_scale": scale})
        if config.noised is not None:
            flags = {"ckpt": config.noised, "eps": 0, "guide_scale": scale}
            yield Way(f"of noised images, scale {scale:g}", guided, flags)


def compare(config: GuidanceConfig) -> Summary:
    """The table. UserError for what does not fit, before any work."""
    judges = Judges(config, [config.ckpt, *filter(None, [config.noised])], config.num_images)
    found = list(ways(config, guided_steps(config)))
    sets = {way.name: config.out / f"{way.name.replace(', ', '-').replace(' ', '-')}.npz" for way in found}
    commands = [_refinement(config, way, sets[way.name]) for way in found]
    claim(config.out, {name: getattr(config, name) for name in ("generator", "ckpt", "noised", "num_images", "steps")})
    for command in commands:
        if not command.out.exists():
            refine_set(command)
    compared, seen, references = judges.compared(sets)
    rows = [
        {
            "way": way.name,
            "passes": way.passes,
            "distance": [one.distance(way.name).value for one in compared],
            "less raw": [asdict(one.difference(way.name, RAW)) for one in compared],
            "precision, recall": precision_recall(seen[0][way.name], references[0]),
            "words": [words(one, way.name, RAW) for one in compared],
        }
        for way in found
    ]
    return {
        "out": str(config.out),
        "spaces": judges.names,
        "measures": [one.measure for one in compared],
        "rows": rows,
        "inside less after": {
            f"{eps:g}": [words(one, f"inside, eps {eps:g}", f"after, eps {eps:g}") for one in compared]
            for eps in config.eps
        },
    }


def guided_steps(config: GuidanceConfig) -> int:
    """How many of the pipeline's denoising steps lie within the noise levels of guidance. UserError for none."""
    flags = GeneratorFlags(generator=config.generator, generator_steps=config.steps)
    sampler = open_pipeline(flags, (), pick_device(config.device), trust=False).sampler
    if not isinstance(sampler, UnetSampler):
        raise UserError(f"generator: {config.generator} is no pipeline of pixels (DDPMPipeline, DDIMPipeline)")
    scheduler: Any = sampler.pipe.scheduler
    Guidance.check(scheduler)
    scheduler.set_timesteps(config.steps)
    count = 0
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = i  # as its i-th step finds it
        count += SIGMAS[0] <= line_of(scheduler, t).sigma <= SIGMAS[1]
    if count == 0:
        raise UserError(
            f"steps: none of {config.steps} denoising steps is at a noise of {SIGMAS[0]:g} to {SIGMAS[1]:g}, where "
            "guidance works; take more"
        )
    return count


def _refinement(config: GuidanceConfig, way: Way, out: Path) -> RefineConfig:
    sampled = {"generator": config.generator, "num_images": config.num_images, "generator_steps": config.steps}
    return resolve(RefineConfig, {"ckpt": config.ckpt, "out": out, "device": config.device, **sampled, **way.flags})


def _in_words(summary: Summary) -> str:
    """A table in Markdown."""
    spaces = [f"{space} ({measure})" for space, measure in zip(summary["spaces"], summary["measures"], strict=True)]
    lines = [f"| way | passes | {' | '.join(spaces)} | precision | recall |", f"|{'---|' * (4 + len(spaces))}"]
    for row in summary["rows"]:
        told = [f"{value:.4g}" for value in row["distance"]] if row["way"] == RAW else row["words"]
        precision, recall = row["precision, recall"]
        lines.append(f"| {row['way']} | {row['passes']} | {' | '.join(told)} | {precision:.3f} | {recall:.3f} |")
    lines += [
        f"| inside less after, eps {eps} | | {' | '.join(told)} | | |"
        for eps, told in summary["inside less after"].items()
    ]
    return "\n".join(lines)


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    return run(Command("python -m benchmarks.comparison.guidance", about, GuidanceConfig, compare, _in_words))


if __name__ == "__main__":
    sys.exit(main())
