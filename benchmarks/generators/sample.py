"""Samples of a generator that was trained here, or the generator as a program for `refine --generator export:FILE`.

    python -m benchmarks.generators.sample --run runs/cgan-pd --num-images 10000 --out cgan-pd.npz
    python -m benchmarks.generators.sample --run runs/cgan-pd --export cgan-pd.pt2

Image k follows from --seed and k, classes come in turn: these are the images that `refine --keep-raw` keeps of the same
generator, its program or its pipeline.
"""

import sys
from pathlib import Path

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from benchmarks.generators.folder import PIPELINE, about_run, open_run
from benchmarks.generators.model import function_sampler
from refine.generators.generator_flags import GeneratorFlags
from refine.generators.pipelines import open_pipeline
from refine.generators.sampler import Blocks, Sampler, Sampling
from refine.generators.samples import BLOCK
from robust_models.errors import UserError
from robust_models.images import write_npz
from robust_models.runtime.command import Command, Summary, run
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, ImageCount
from robust_models.runtime.device import pick_device
from robust_models.runtime.files import whole_file


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SampleConfig(DeviceFlags):
    """Sampling: how many images of which run."""

    run: Path = Field(description="the folder of a training that has ended")
    out: Path | None = Field(default=None, description="the .npz of samples")
    num_images: ImageCount = 10_000
    seed: int = Field(default=0, ge=0, description="of the noise")
    steps: AtLeastOne | None = Field(default=None, description="denoising steps of a diffusion model (null: 18)")
    export: Path | None = Field(default=None, description="the .pt2 of a GAN's or a VAE's generator")
    score: str | None = Field(default=None, description="real images to compare the samples with")
    features: str = Field(default="efficientnet-lite0-128", description="feature spaces of the scores, with commas")


def sample(config: SampleConfig) -> Summary:
    """Writes what is asked for. UserError where the run has no generator, or where nothing is asked for."""
    if not config.out and (config.score or not config.export):
        raise UserError("out: give --out FILE.npz for samples, or --export FILE.pt2 alone for a program")
    summary: Summary = {"run": str(config.run)}
    if config.export:
        summary |= {"export": str(config.export), "flags": _export(config.run, config.export)}
    if config.out:
        summary |= {"out": str(config.out), "n": _write_samples(config, config.out)}
        if config.score:
            from eval import image_quality

            summary["scores"] = image_quality(
                config.out, config.score, metrics=("fid", "kid"), features=config.features, device=config.device
            )
    return summary


def _write_samples(config: SampleConfig, out: Path) -> int:
    about, device = about_run(config.run), pick_device(config.device)
    sampler = _sampler(config, device)
    classes = None if sampler.num_classes is None else torch.arange(sampler.num_classes)
    sampling = Sampling(str(config.run), sampler, classes, config.seed, device)
    n = config.num_images
    x_u8 = Blocks(sampling, min(n, BLOCK), sampling.first_look(min(2, n)))(0, n)
    labels = None if classes is None else (torch.arange(n) % len(classes)).numpy()
    write_npz(out, x_u8, labels, None if classes is None else about["class_names"])
    return n


def _sampler(config: SampleConfig, device: torch.device) -> Sampler:
    if (config.run / PIPELINE).exists():
        flags = GeneratorFlags(generator=f"diffusers:{config.run / PIPELINE}", generator_steps=config.steps or 18)
        return open_pipeline(flags, (), device, trust=False).sampler
    if config.steps:
        raise UserError(f"steps: {config.run} is no diffusion model; leave --steps out")
    return function_sampler(open_run(config.run, device).generator, device)


def _export(folder: Path, out: Path) -> str:
    """Writes the generator as a torch.export file; gives the flags that `refine` needs with it."""
    generator = open_run(folder).generator.to(memory_format=torch.contiguous_format)  # as export files hold weights
    example = [torch.randn(2, *generator.z_shape)]
    if generator.num_classes is not None:
        example.append(torch.zeros(2, dtype=torch.int64))
    free = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(generator, tuple(example), dynamic_shapes=(free,) * len(example))
    with whole_file(out) as partial, partial.open("wb") as file:
        torch.export.save(program, file)
    classes = "" if generator.num_classes is None else f" --generator-classes {generator.num_classes}"
    return f"--generator export:{out} --trust --generator-pixels {generator.pixels}{classes}"


def _in_words(summary: Summary) -> str:
    lines = []
    if "export" in summary:
        lines.append(f"{summary['export']}: bigroc refine {summary['flags']}")
    if "out" in summary:
        lines.append(f"{summary['out']}: {summary['n']} images")
    for space in [summary["scores"], *summary["scores"].get("spaces", [])] if "scores" in summary else []:
        lines.append(f"{space['features']}: frechet {space['frechet']:.4g}, kid {space['kid']:.4g}")
    return "\n".join(lines)


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    return run(Command("python -m benchmarks.generators.sample", about, SampleConfig, sample, _in_words))


if __name__ == "__main__":
    sys.exit(main())
