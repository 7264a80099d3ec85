"""The flags of a generator as input: which one, how many of its images, and how they are sampled."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_models.errors import UserError, none_of
from robust_models.runtime.config import STRICT, AtLeastOne, ImageCount, Number, leaves

Kind = Literal["diffusers", "torchscript", "export", "python"]
KINDS: dict[Kind, str] = {
    "diffusers": "diffusers:NAME_OR_FOLDER",
    "torchscript": "torchscript:FILE",
    "export": "export:FILE",
    "python": "python:PACKAGE.MODULE:FUNCTION",
}
assert tuple(KINDS) == get_args(Kind)
Pixels = Literal["unit", "symmetric", "bytes"]  # [0,1], [-1,1], 0 to 255
Schedule = Literal["sigma", "constant"]  # of the radius of guidance
SIGMAS = (0.1, 3.0)  # below, the image is done; above, there is not yet one that a classifier of images could see
_OF_GUIDANCE = ("guide_steps", "guide_schedule", "guide_from", "guide_to")
_OF_PIPELINES = (
    *(f"generator_{name}" for name in ("steps", "scheduler", "guidance", "precision", "prompt")),
    "guide_eps", "guide_scale", *_OF_GUIDANCE,
)  # fmt: skip
_OF_FUNCTIONS = tuple(f"generator_{name}" for name in ("latent", "classes", "pixels"))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GeneratorFlags:
    """Generator: samples are refined as they come, in place of --input."""

    generator: str | None = Field(
        default=None, description=f"{', '.join(KINDS.values())}; those that bring code of their own need --trust"
    )
    num_images: ImageCount | None = Field(default=None, description="how many images the generator makes")
    generator_seed: int = Field(
        default=0, ge=0, description="of everything drawn for the images; noise of image k depends on (seed, k) alone"
    )
    generator_batch: AtLeastOne | None = Field(
        default=None, description="images sampled at once, on any number of ranks (null: 64, fewer of large images)"
    )
    generator_steps: AtLeastOne | None = Field(
        default=None, description="denoising steps of a diffusers pipeline (null: as many as it usually takes)"
    )
    generator_scheduler: str | None = Field(
        default=None,
        description="a scheduler of diffusers in place of the pipeline's, by its class: DDIMScheduler (null: its own)",
    )
    generator_guidance: Annotated[Number, Field(ge=0)] | None = Field(
        default=None, description="guidance scale of a diffusers pipeline (null: its usual one)"
    )
    generator_precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="number type of a diffusers pipeline"
    )
    generator_prompt: str | None = Field(
        default=None,
        description="what a text-to-image pipeline is asked for; {class} stands for the name of each image's class",
    )
    generator_latent: str | None = Field(
        default=None,
        description="shape of the normal noise z that a function or program takes: 128 or 128,1,1 (null: its attribute "
        "z_shape)",
    )
    generator_classes: AtLeastOne | None = Field(
        default=None,
        description="number of classes of a function or program that takes z and y (null: its attribute num_classes; "
        "without that, z alone)",
    )
    generator_pixels: Pixels | None = Field(
        default=None,
        description="range of the pixels of a function or program: unit is [0,1], symmetric [-1,1], bytes 0 to 255 "
        "(null: its attribute pixels, else unit, or bytes where they are uint8)",
    )
    guide_eps: Annotated[Number, Field(gt=0)] | None = Field(
        default=None,
        description="classifier guidance of a diffusers pipeline in pixels: its denoised estimates are refined, too, "
        "as they form, in a ball of this radius with --norm and --loss, pixels in [0,1] (null: no guidance)",
    )
    guide_scale: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="guidance by the plain gradient instead, scale * sigma^2 times as long (null: none)"
    )
    guide_steps: AtLeastOne = Field(default=1, description="PGD steps of guidance at each denoising step")
    guide_schedule: Schedule = Field(
        default="sigma", description="radius of guidance: sigma: --guide-eps * min(1, sigma); constant: --guide-eps"
    )
    guide_from: Annotated[Number, Field(gt=0)] = Field(
        default=SIGMAS[1], description="highest noise level sigma at which it guides"
    )
    guide_to: Annotated[Number, Field(ge=0)] = Field(
        default=SIGMAS[0], description="lowest noise level at which it guides"
    )
    classes: str | None = Field(
        default=None,
        description="classes that a class-conditional generator, or guidance, makes in turn: names or indices with "
        "commas (null: all)",
    )
    keep_raw: Path | None = Field(
        default=None, description="also keep the samples as they were before they were refined, at this place"
    )


DEFAULTS = {leaf.name: leaf.default for leaf in leaves(GeneratorFlags)}


def check_generator(flags: GeneratorFlags) -> None:
    """UserError where the flags of a generator that is given contradict each other."""
    assert flags.generator is not None
    kind, _ = split_spec(flags.generator)
    if flags.num_images is None:
        raise UserError("num_images: is required with --generator; say how many images it is to make")
    if flags.guide_eps is not None and flags.guide_scale is not None:
        raise UserError(f"guide_scale: {flags.guide_scale:g}, but --guide-eps guides already; give one of them")
    for name in () if is_guided(flags) else _OF_GUIDANCE:
        if getattr(flags, name) != DEFAULTS[name]:
            raise UserError(f"{name}: {getattr(flags, name)} is for --guide-eps or --guide-scale; give one of them")
    if flags.guide_to > flags.guide_from:
        raise UserError(f"guide_to: {flags.guide_to:g} is above --guide-from {flags.guide_from:g}, where it begins")
    others, names = ("functions and programs", _OF_FUNCTIONS) if kind == "diffusers" else ("pipelines", _OF_PIPELINES)
    for name in names:
        if getattr(flags, name) != DEFAULTS[name]:
            raise UserError(f"{name}: is for {others}, not for {flags.generator}")


def is_guided(flags: GeneratorFlags) -> bool:
    """Whether the classifier takes part in the sampling."""
    return flags.guide_eps is not None or flags.guide_scale is not None


def split_spec(spec: str) -> tuple[Kind, str]:
    """ "diffusers:google/ddpm-cifar10-32" as its kind and name. UserError, with the near miss, for another kind."""
    kind, colon, name = spec.partition(":")
    for known in KINDS:
        if kind == known and name:
            return known, name
    told = none_of(kind, KINDS) if colon and kind not in KINDS else f"{spec!r} is not of the form KIND:NAME"
    raise UserError(f"generator: {told}; give {', '.join(KINDS.values())}")
