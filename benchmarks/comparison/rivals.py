"""Samples of a GAN trained here, chosen by one of the methods that BIGRoC is compared with, and what they cost.

    python -m benchmarks.comparison.rivals --run runs/cgan-pd --method drs --data cifar10 --out drs.npz

The same --seed and --num-images give every method the same classes, and those that move noise the same starts. Beside
the samples, OUT.json says how many images went through each network per sample. A run that was stopped goes on.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from benchmarks.comparison.calibration import Calibration, calibrate
from benchmarks.comparison.classifier_logit import ClassifierLogit
from benchmarks.comparison.corrector import BATCH, Corrected, train_corrector
from benchmarks.comparison.ddls import LangevinSampling
from benchmarks.comparison.dg_flow import GradientFlow
from benchmarks.comparison.dot import OptimalTransport, steepest_slopes
from benchmarks.comparison.drs import RejectionSampling, bounds_of
from benchmarks.comparison.latent_gan import LatentGan, PixelGan, Rival, Unchosen
from benchmarks.comparison.mh_gan import MetropolisHastings
from benchmarks.generators.folder import about_run, fresh_networks, loaded, open_run, read_cost, save_network
from refine.generators.sampler import Sampling
from refine.generators.samples import BLOCK
from robust_models import load
from robust_models.datasets import Dataset, load_dataset
from robust_models.errors import UserError, about_field
from robust_models.images import to_float, to_u8, write_npz
from robust_models.runtime.command import Command, Summary, run
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, ImageCount, Positive, as_plain
from robust_models.runtime.device import pick_device
from robust_models.runtime.files import exclusive, whole_file, write_json

_IN_PIXELS = ("dot", "dg-flow")
Method = Literal["none", "drs", "mh-gan", "dot", "ddls", "dg-flow"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RivalConfig(DeviceFlags):
    """Comparison: which method chooses the samples of which run."""

    run: Path = Field(description="the folder of a GAN's training that has ended")
    method: Method
    discriminator: Path | None = Field(
        default=None,
        description="the run of a GAN whose discriminator, with a corrector, serves a generator without one",
    )
    corrector_steps: AtLeastOne = Field(default=2000, description="of its training, of 64 images of each generator")
    space: Literal["latent", "pixel"] = Field(default="latent", description="what dot and dg-flow move")
    out: Path = Field(description="the .npz of samples")
    num_images: ImageCount = 10_000
    seed: int = Field(default=0, ge=0, description="of the noise")
    data: str = Field(default="cifar10", description="real images; of its test split those that calibrate")
    held_out: AtLeastOne = Field(default=1000, description="how many of them, and of made ones, calibrate")
    calibrate: bool | None = Field(
        default=None, description="make the logits log-odds of being real (null: for mh-gan, which needs it)"
    )
    classifier: str | None = Field(
        default=None, description="a classifier whose logits take the discriminator's place (null: the run's own)"
    )
    burn_in: AtLeastOne = Field(default=10_000, description="drs: samples that set the highest logit and gamma")
    percentile: float = Field(default=95, ge=0, le=100, description="drs: of the log-odds, for gamma")
    proposals: AtLeastOne = Field(default=640, description="mh-gan: for each image")
    steps: AtLeastOne | None = Field(default=None, description="dot, ddls, dg-flow (null: 100, 1000, 25)")
    step_size: Positive | None = Field(default=None, description="dot, ddls, dg-flow (null: 0.01, 0.01, 0.1)")


def run_rival(config: RivalConfig) -> Summary:
    """Writes the samples and OUT.json. UserError where the run is no GAN, or where config.out holds other samples."""
    if config.out.suffix != ".npz":
        raise UserError(f"out: {config.out} does not end in .npz, which is what samples are written as")
    with exclusive(config.out):
        report, work = config.out.with_suffix(".json"), config.out.with_name(f".{config.out.name}.work")
        about, device = about_run(config.run), pick_device(config.device)
        settings = {name: value for name, value in as_plain(config).items() if name not in ("out", "device")}
        settings["training"] = read_cost(config.run)  # another one once the run has had more steps
        if report.exists() and config.out.exists():
            _check_same(report, json.loads(report.read_text())["settings"], settings)
            print(f"{config.out}: already finished", file=sys.stderr)
            return json.loads(report.read_text())
        begun = work / "settings.json"
        if begun.exists():
            _check_same(work, json.loads(begun.read_text()), settings)
        corrector = _corrector(config, work / "corrector.safetensors", device)
        gan, calibration, rival = _opened(config, corrector, device)
        preparation = {**gan.passes, "corrector": 0 if corrector is None else 2 * BATCH * config.corrector_steps}
        classes = None if gan.num_classes is None else torch.arange(gan.num_classes)
        sampling = Sampling(str(config.run), rival, classes, config.seed, device)
        sampling.first_look(2)
        write_json(begun, settings)
        if corrector is not None:
            save_network(work / "corrector.safetensors", corrector)
        parts = [_part(sampling, gan, first, work, config.num_images) for first in range(0, config.num_images, BLOCK)]
        x_u8 = torch.cat([x for x, _ in parts])
        labels = None if classes is None else (torch.arange(config.num_images) % len(classes)).numpy()
        write_npz(config.out, x_u8, labels, None if classes is None else about["class_names"])
        passes = np.sum([count for _, count in parts], axis=0) / config.num_images
        per_image = dict(zip(gan.passes, passes.tolist(), strict=True))
        found: Summary = {
            "out": str(config.out),
            "settings": settings,
            "passes per image": per_image,
            "passes of preparation": preparation,
            "calibration": None if calibration is None else {
                "slope": calibration.scale.slope,
                "offset": calibration.scale.offset,
                "z before": calibration.z_before,
                "z after": calibration.z_after,
            },
        }  # fmt: skip
        write_json(report, found)
        shutil.rmtree(work)
        return found


def _check_same(place: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in new:
        if old.get(name) != new[name]:
            raise UserError(
                f"out: {place} is of samples with another {name} ({old.get(name)} there, {new[name]} now); name "
                "another --out, or remove it"
            )


def _part(sampling: Sampling, gan: LatentGan, first: int, work: Path, total: int) -> tuple[Tensor, np.ndarray]:
    """Samples `first` and those that follow in its block, and the passes that they took; kept in `work`."""
    path = work / f"{first:09d}.npz"
    if not path.exists():
        gan.passes = dict.fromkeys(gan.passes, 0)
        x_u8 = to_u8(sampling.block(first, min(BLOCK, total - first)))
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, x_u8=x_u8.numpy(), passes=np.array(list(gan.passes.values())))
    with np.load(path) as content:
        return torch.from_numpy(content["x_u8"]), content["passes"]


def _corrector(config: RivalConfig, kept: Path, device: torch.device) -> nn.Module | None:
    """What makes another GAN's discriminator one of this run's generator; trained here, unless it is kept already."""
    if config.discriminator is None:
        return None
    if config.classifier is not None:
        raise UserError("discriminator: --classifier takes its place; leave one of them out")
    generator, own = open_run(config.run, device)
    if own is not None:
        raise UserError(f"discriminator: {config.run} has one of its own; leave --discriminator out")
    other, discriminator = open_run(config.discriminator, device)
    if discriminator is None:
        raise UserError(f"discriminator: {config.discriminator} has none; name the run of a GAN")
    if discriminator.num_classes not in (None, generator.num_classes):
        raise UserError(
            f"discriminator: {config.discriminator} knows {discriminator.num_classes} classes, {config.run} makes "
            f"{generator.num_classes or 'none'}"
        )
    corrector = fresh_networks(config.discriminator, config.seed)["discriminator"].to(device)
    if kept.exists():
        return loaded(corrector, kept, device)
    train_corrector(corrector, other, generator, config.corrector_steps, config.seed)
    return corrector


def _opened(
    config: RivalConfig, corrector: nn.Module | None, device: torch.device
) -> tuple[LatentGan, Calibration | None, Rival]:
    """The networks, what calibrated them, and the method, ready to sample."""
    if config.space == "pixel" and config.method not in _IN_PIXELS:
        raise UserError(f"space: pixel is for {' and '.join(_IN_PIXELS)}; {config.method} chooses noise")
    generator, discriminator = open_run(config.run, device)
    if config.classifier is not None:
        with about_field("classifier"):
            classifier = load(config.classifier).to(device).requires_grad_(False).eval()
        if generator.num_classes not in (None, known := classifier.description.num_classes):
            raise UserError(
                f"classifier: {config.classifier} knows {known} classes, {config.run} makes {generator.num_classes}"
            )
        discriminator = ClassifierLogit(classifier, generator.pixels)
    if corrector is not None and config.discriminator is not None:
        discriminator = Corrected(open_run(config.discriminator, device).discriminator, corrector, generator.pixels)
    if discriminator is None:
        raise UserError(f"run: {config.run} has no discriminator; give --discriminator RUN of a GAN, or --classifier")
    gan = (PixelGan if config.space == "pixel" else LatentGan)(generator, discriminator, device)
    calibration = None
    if config.calibrate or (config.calibrate is None and config.method == "mh-gan"):
        real = _held_out(config)
        calibration = calibrate(_real_logits(gan, real), _fake_logits(gan, len(real), real.y, config.seed))
        gan.scale = calibration.scale
    return gan, calibration, _METHODS[config.method](gan, config)


def _drs(gan: LatentGan, config: RivalConfig) -> Rival:
    y = None if gan.num_classes is None else torch.arange(config.burn_in) % gan.num_classes
    return RejectionSampling(gan, bounds_of(_fake_logits(gan, config.burn_in, y, config.seed), y, config.percentile))


def _mh_gan(gan: LatentGan, config: RivalConfig) -> Rival:
    real = _held_out(config)
    logits = _real_logits(gan, real)
    starts = [logits] if gan.num_classes is None else [logits[real.y == c] for c in range(gan.num_classes)]
    if missing := [c for c, one in enumerate(starts) if not len(one)]:
        raise UserError(
            f"held_out: {config.held_out} images of {config.data}, but none of class {missing[0]}; take more"
        )
    return MetropolisHastings(gan, starts, config.proposals)


def _dot(gan: LatentGan, config: RivalConfig) -> Rival:
    slopes = steepest_slopes(gan, 100 if gan.num_classes is None else 50, config.seed)
    return OptimalTransport(gan, slopes, config.steps or 100, config.step_size or 0.01)


_METHODS: dict[Method, Callable[[LatentGan, RivalConfig], Rival]] = {
    "none": lambda gan, config: Unchosen(gan),
    "drs": _drs,
    "mh-gan": _mh_gan,
    "dot": _dot,
    "ddls": lambda gan, config: LangevinSampling(gan, config.steps or 1000, config.step_size or 0.01),
    "dg-flow": lambda gan, config: GradientFlow(gan, config.steps or 25, config.step_size or 0.1),
}


def _held_out(config: RivalConfig) -> Dataset:
    data = load_dataset(config.data, "test")
    if len(data) < config.held_out:
        raise UserError(f"held_out: {config.held_out}, but {config.data} has {len(data)} images; give fewer")
    return data[: config.held_out]


def _real_logits(gan: LatentGan, real: Dataset) -> Tensor:
    symmetric = gan.generator.pixels == "symmetric"
    x = [to_float(part) for part in real.x_u8.split(BLOCK)]
    classes = [None] * len(x) if gan.num_classes is None else real.y.split(BLOCK)
    return torch.cat([gan.rated(2 * one - 1 if symmetric else one, y) for one, y in zip(x, classes, strict=True)])


def _fake_logits(gan: LatentGan, n: int, y: Tensor | None, seed: int) -> Tensor:
    """Of n samples, of these classes where there are classes; other ones than those that are written."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for first in range(0, n, BLOCK):
        classes = None if y is None or gan.num_classes is None else y[first : first + BLOCK]
        start = gan.start([random] * min(BLOCK, n - first), classes)
        parts.append(gan.logits(start, classes))
    return torch.cat(parts)


def _in_words(summary: Summary) -> str:
    passes = ", ".join(f"{name} {count:.4g}" for name, count in summary["passes per image"].items())
    return f"{summary['out']}: passes per image: {passes}"


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    return run(Command("python -m benchmarks.comparison.rivals", about, RivalConfig, run_rival, _in_words))


if __name__ == "__main__":
    sys.exit(main())
