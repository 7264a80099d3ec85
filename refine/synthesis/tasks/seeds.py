"""seeds: fits the class seeds (class_seeds.py) to labelled images, once for all classifiers of their classes."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from robust_models.class_seeds import ClassSeeds
from robust_models.datasets import AnyDataset, open_dataset
from robust_models.errors import UserError
from robust_models.images import to_float
from robust_models.mixture import Mixture, fit
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.config import STRICT, AtLeastOne
from robust_models.runtime.distributed import check_alone
from robust_models.runtime.seeds import DRAW, generator

MOST = 16  # side of the low resolution unless asked for: the covariances of 3 * 16 * 16 numbers are still cheap
_READ_AT_ONCE = 256  # images

EXAMPLES = """\
  bigroc refine --task seeds --data data/cifar10_train.npz --out cifar10-seeds.npz
  bigroc refine --task seeds --data imagenet:/data/imagenet --out robust.seeds.npz --per-class 500 --components 2
OUT beside a checkpoint NAME.safetensors and called NAME.seeds.npz is what --task generate then takes by itself.
"""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SeedsConfig:
    """Which images to fit seeds to, and how detailed."""

    data: str = Field(description="labelled images: cifar10, imagenet:DIR, a folder, .npz, .pt, ... (train split)")
    out: Path = Field(description="the file of seeds, .npz")
    class_names: str | None = Field(default=None, description="the classes in order, with commas (null: the data's)")
    components: AtLeastOne = Field(default=4, description="Gaussians per class; 1 is the paper's")
    side: AtLeastOne | None = Field(
        default=None, description="images become side x side block averages (null: a quarter of theirs, at most 16)"
    )
    rank: AtLeastOne = Field(default=96, description="directions kept of each covariance")
    per_class: Annotated[int, Field(ge=2)] | None = Field(default=None, description="images per class (null: all)")
    image_size: AtLeastOne | None = Field(default=None, description="resize and crop the images to squares (null: no)")
    seed: int = Field(default=0, ge=0, description="of the first clusters")
    overwrite: bool = Field(default=False, description="replace what stands at --out")


def fit_seeds(config: SeedsConfig) -> Summary:
    """Fits and writes config.out; gives what it holds."""
    check_alone("task: seeds")
    if config.out.suffix != ".npz":
        raise UserError(f"out: {config.out} is to end in .npz")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"out: {config.out} exists; remove it, choose another place, or pass --overwrite")
    if config.out.exists():
        ClassSeeds.load(config.out)  # UserError where it is no file of seeds: nothing else is replaced
    names = [name.strip() for name in config.class_names.split(",")] if config.class_names else ()
    data = open_dataset(config.data, "train", image_size=config.image_size, class_names=names)
    side = _side(config, data.image_size)
    mixtures: list[Mixture] = []
    used = 0
    for label, name in enumerate(tqdm(data.class_names, desc="seeds", unit="class")):
        x = _averages(data, torch.nonzero(data.y == label).flatten()[: config.per_class], side)
        if len(x) < 2 * config.components:
            raise UserError(
                f"data: class {name} has {len(x)} images; {config.components} components need {2 * config.components}"
            )
        draw = generator("cpu", config.seed, DRAW, label)
        mixtures.append(fit(x, config.components, rank=min(config.rank, x.shape[1]), generator=draw))
        used += len(x)
    seeds = ClassSeeds(data.class_names, tuple(mixtures), side, data.image_size, f"{data.source}, {used} images")
    seeds.save(config.out)
    return {
        "out": str(config.out),
        "classes": len(mixtures),
        "components": config.components,
        "side": side,
        "image_size": data.image_size,
        "images": used,
        "bytes": config.out.stat().st_size,
    }


def block_average(x: Tensor, side: int) -> Tensor:
    """x [N,3,S,S] -> [N, 3 * side * side], each number the mean of a block of S/side pixels squared."""
    factor = x.shape[-1] // side
    return torch.nn.functional.avg_pool2d(x, factor).flatten(1)


def _averages(data: AnyDataset, numbers: Tensor, side: int) -> Tensor:
    parts = [block_average(to_float(data.read(part)), side) for part in numbers.split(_READ_AT_ONCE) if len(part)]
    return torch.cat(parts) if parts else torch.empty(0, 3 * side**2)


def _side(config: SeedsConfig, image_size: int) -> int:
    side = config.side
    if side is None:
        side = max(d for d in range(1, MOST + 1) if image_size % d == 0 and d <= max(1, image_size // 4))
    if image_size % side:
        raise UserError(f"side: {side} is no divisor of the images' {image_size} pixels")
    return side


def _format_summary(summary: Summary) -> str:
    return (
        f"{summary['out']}: {summary['classes']} classes of {summary['components']} Gaussians over {summary['side']}x"
        f"{summary['side']} block averages of {summary['images']} images, {summary['bytes'] / 1024:.0f} KiB"
    )


COMMAND = Command(
    name="bigroc refine --task seeds",
    about="Fit the class-conditional seeds that generation begins with.",
    schema=SeedsConfig,
    work=fit_seeds,
    format_summary=_format_summary,
    examples=EXAMPLES,
)
