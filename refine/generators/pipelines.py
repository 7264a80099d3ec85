"""Generators that are pipelines of diffusers: in pixels or latent, unconditional, of classes or from text."""

import importlib.util
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refine.generators.generator_flags import GeneratorFlags, split_spec
from refine.generators.sampler import Opened, Sampler
from robust_models.checkpoints.programs.program import reason
from robust_models.errors import UserError, none_of
from robust_models.images.open import fingerprint

if TYPE_CHECKING:
    from refine.guidance import Guidance

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_QUICK_STEPS = 2
_CLASS = "{class}"  # in a prompt
_OWN_LOOP = ("DDPMPipeline", "DDIMPipeline")
_GIVEN = ("prompt", "class_labels")  # arguments without a default that a pipeline may have


@dataclass(frozen=True)
class UnetSampler:
    """Denoising in pixels by a UNet and a scheduler: DDPMPipeline and DDIMPipeline, whatever scheduler they have.

    Their own loops know neither a UNet's classes nor the scaling of its input that the schedulers of EDM and
    k-diffusion ask for; with their own schedulers this gives what they give, bit for bit.
    """

    pipe: Any
    steps: int
    guidance: "Guidance | None" = None
    targets: Tensor | None = None  # [its classes] -> the classifier's that guides; None: the same
    numbers: Mapping[str, int] = field(default_factory=dict)
    batch: int | None = None

    @property
    def num_classes(self) -> int | None:
        """Of the UNet's embedding."""
        return self.pipe.unet.config.num_class_embeds

    @torch.no_grad()
    def __call__(self, generators: Sequence[torch.Generator], y: Tensor | None, *, quick: bool = False) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        unet, scheduler, device = self.pipe.unet, self.pipe.scheduler, self.pipe.device
        side = unet.config.sample_size
        size = (side, side) if isinstance(side, int) else tuple(side)
        shape = (len(generators), unet.config.in_channels, *size)
        random = {"generator": list(generators)} if "generator" in _parameters(scheduler.step) else {}
        labels = {} if y is None or self.num_classes is None else {"class_labels": y.to(device)}
        if self.guidance is not None:
            assert y is not None
            scheduler = self.guidance.around(scheduler, y if self.targets is None else self.targets[y])
        scheduler.set_timesteps(min(self.steps, _QUICK_STEPS) if quick else self.steps, device=device)
        x = randn_tensor(shape, generator=list(generators), device=device, dtype=unet.dtype)
        x = x * scheduler.init_noise_sigma
        for t in self.pipe.progress_bar(scheduler.timesteps):
            output = unet(scheduler.scale_model_input(x, t), t, **labels).sample
            x = scheduler.step(output, t, x, **random).prev_sample
        return (x / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class PipelineSampler:
    """Any other pipeline, called as a whole with the arguments that it takes."""

    pipe: Any
    steps: int | None  # None: its own default
    guidance: dict[str, float]  # guidance_scale, or nothing
    num_classes: int | None
    numbers: Mapping[str, int]
    prompts: Sequence[str]  # by class, or one for all; none: it takes none
    batch: int | None = None

    def __call__(self, generators: Sequence[torch.Generator], y: Tensor | None, *, quick: bool = False) -> Tensor:
        known, n = _parameters(self.pipe), len(generators)
        arguments: dict[str, Any] = {"generator": list(generators), "output_type": "np", **self.guidance}
        if self.prompts:
            arguments["prompt"] = [self.prompts[0 if y is None else int(y[i])] for i in range(n)]
        elif "batch_size" in known:
            arguments["batch_size"] = n
        if y is not None and not self.prompts:
            arguments["class_labels"] = y.tolist()
        steps = min(self.steps or _QUICK_STEPS, _QUICK_STEPS) if quick else self.steps
        if steps is not None and "num_inference_steps" in known:
            arguments["num_inference_steps"] = steps
        images = torch.as_tensor(self.pipe(**arguments).images)
        return images.permute(0, 3, 1, 2) if images.ndim == 4 else images


def open_pipeline(flags: GeneratorFlags, class_names: Sequence[str], device: torch.device, *, trust: bool) -> Opened:
    """The pipeline that flags.generator names, on the device; class_names: the classifier's, which a prompt may name.

    UserError where diffusers is not there, the pipeline is not found, or it does not fit the flags.
    """
    assert flags.generator is not None
    _, name = split_spec(flags.generator)
    if importlib.util.find_spec("diffusers") is None:
        raise UserError(f'generator: {flags.generator} needs the package diffusers; pip install "bigroc[generators]"')
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = _folder(name, DiffusionPipeline)
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=trust)
        pipe.to(device, _DTYPES[flags.generator_precision])
    except Exception as error:  # another library's code
        raise UserError(f"generator: {folder} is no pipeline that diffusers opens ({reason(error)})") from error
    pipe.set_progress_bar_config(leave=False, desc="sample", disable=os.environ.get("RANK", "0") != "0")
    if flags.generator_scheduler is not None:
        _change_scheduler(pipe, flags.generator_scheduler)
    sampler = _unet(pipe, flags) if type(pipe).__name__ in _OWN_LOOP else _whole(pipe, flags, class_names)
    return Opened(sampler, folder, fingerprint(folder))


def _folder(name: str, pipeline: Any) -> Path:
    """The folder called so, or the one where the hub's pipeline of that name lies once it is downloaded."""
    if Path(name).exists():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise UserError(f"generator: no folder {name} here; a pipeline of the hub is called OWNER/NAME")
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it warns of, a hub out of reach, is in the error
    try:
        return Path(pipeline.download(name))
    except Exception as error:  # another library's code
        raise UserError(
            f"generator: {name} is no folder here, and the hub does not give it ({reason(error)}); without a network, "
            "download it elsewhere and name its folder: diffusers:FOLDER"
        ) from error
    finally:
        logger.setLevel(level)


def _change_scheduler(pipe: Any, name: str) -> None:
    """Puts a scheduler of this class, with the pipeline's own noise schedule, in the place of the pipeline's."""
    known = {kind.__name__: kind for kind in getattr(pipe.scheduler, "compatibles", ())}
    if name not in known:
        raise UserError(f"generator_scheduler: {none_of(name, known or [type(pipe.scheduler).__name__])}")
    # By "leading", DDIM's default, 50 of 1000 steps would begin at 980, where the images are not yet pure noise.
    spacing = {"timestep_spacing": "trailing"} if "timestep_spacing" in _parameters(known[name].__init__) else {}
    pipe.scheduler = known[name].from_config(pipe.scheduler.config, **spacing)


def _unet(pipe: Any, flags: GeneratorFlags) -> Sampler:
    for name in ("guidance", "prompt"):
        if getattr(flags, f"generator_{name}") is not None:
            raise UserError(f"generator_{name}: {flags.generator} is a {type(pipe).__name__}, which takes none")
    default = min(_parameters(pipe)["num_inference_steps"].default, pipe.scheduler.config.num_train_timesteps)
    return UnetSampler(pipe, flags.generator_steps or default)


def _whole(pipe: Any, flags: GeneratorFlags, class_names: Sequence[str]) -> Sampler:
    known, what = _parameters(pipe), f"{flags.generator} is a {type(pipe).__name__}"
    if missing := [name for name, one in known.items() if _is_required(one) and name not in _GIVEN]:
        raise UserError(
            f"generator: {what}, which needs {', '.join(missing)}; call it in a function of your own: "
            "python:PACKAGE.MODULE:FUNCTION"
        )
    for name, argument in (("steps", "num_inference_steps"), ("guidance", "guidance_scale"), ("prompt", "prompt")):
        if getattr(flags, f"generator_{name}") is not None and argument not in known:
            raise UserError(f"generator_{name}: {what}, which takes none")
    prompt, prompts = flags.generator_prompt, ()
    if "prompt" in known:
        if prompt is None:
            raise UserError(f"generator_prompt: is required: {what}, which makes images from text")
        prompts = [prompt.replace(_CLASS, name) for name in class_names] if _CLASS in prompt else [prompt]
        num_classes = len(class_names) if _CLASS in prompt else None
    else:
        num_classes = _num_classes(pipe) if "class_labels" in known else None
    guidance = {} if flags.generator_guidance is None else {"guidance_scale": flags.generator_guidance}
    names = getattr(pipe, "labels", {})  # of DiTPipeline: several names for a class
    numbers = {str(name).casefold(): int(number) for name, number in names.items()} if isinstance(names, dict) else {}
    return PipelineSampler(pipe, flags.generator_steps, guidance, num_classes, numbers, prompts)


def _num_classes(pipe: Any) -> int | None:
    networks = (getattr(pipe, name, None) for name in ("transformer", "unet"))
    config = next(network.config for network in networks if network is not None)
    return config.get("num_embeds_ada_norm") or config.get("num_class_embeds")


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
