"""python -m train.loaders.ffcv write|info: makes and describes .beton files; neither needs FFCV to be installed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from robust_models.datasets import AnyDataset, Dataset, Split, open_whole
from robust_models.datasets.beton import RAW, open_beton, write_beton
from robust_models.datasets.stores import FileStore
from robust_models.errors import UserError
from robust_models.runtime.command import Command, OneOf, Summary, run
from robust_models.runtime.config import STRICT
from train.loaders.base import usable_cores

EXAMPLES = """\
  python -m train.loaders.ffcv write --data cifar10 --out cifar10.beton
  python -m train.loaders.ffcv write --data imagenet:DIR --out imagenet.beton --mode jpg --max-resolution 256
  python -m train.loaders.ffcv info imagenet.beton
"""
_AT_ONCE = 256  # images


@dataclass(frozen=True, config=STRICT)
class WriteConfig:
    """Write: which images, and how they are stored."""

    data: str = Field(description="any source of training data: cifar10, imagenet:DIR, a folder, an .npz, ...")
    out: Path = Field(description="the .beton to write")
    split: Split = Field(default="train", description="train or test")
    mode: Literal["raw", "jpg"] = Field(default="raw", description="pixels as they are, or JPEG: smaller and lossy")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(default=90, description="mode=jpg: quality of the JPEG")
    max_resolution: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="pixels of the longer side; larger images are shrunk to it"
    )
    overwrite: bool = Field(default=False, description="replace an existing file")


@dataclass(frozen=True, config=STRICT)
class InfoConfig:
    """Info: which file."""

    file: Path = Field(description="a .beton")


def run_write(config: WriteConfig) -> Summary:
    """Writes config.out and gives what `info` says of it."""
    if config.out.suffix != ".beton":
        raise UserError(f"out: {config.out} does not end in .beton")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"out: {config.out} exists; choose another name or pass --overwrite")
    data = open_whole(config.data, config.split)
    quality = config.quality if config.mode == "jpg" else None
    images = _whole_images(data, partial(_shrunk, longest=config.max_resolution))
    images = tqdm(images, "write", len(data), unit="img", mininterval=1)
    write_beton(config.out, images, data.y.numpy(), data.class_names, jpeg_quality=quality)
    return run_info(InfoConfig(config.out))


def run_info(config: InfoConfig) -> Summary:
    """What a .beton holds, ready for JSON."""
    store, class_names = open_beton(config.file)
    heights, widths = store.samples["height"], store.samples["width"]
    raw = int((store.samples["mode"] == RAW).sum())
    return {
        "file": str(config.file),
        "bytes": config.file.stat().st_size,
        "images": len(store.labels),
        "raw": raw,
        "jpg": len(store.labels) - raw,
        "height": [int(heights.min()), int(heights.max())],
        "width": [int(widths.min()), int(widths.max())],
        "fields": list(store.field_names),
        "classes": list(class_names),
        "images_per_class": np.bincount(store.labels, minlength=len(class_names)).tolist(),
    }


def _whole_images(data: AnyDataset, finish: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """finish(uint8 [H,W,3]) of each image, not cut to a size; image files are decoded side by side."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(data), _AT_ONCE):
            part = data[start : start + _AT_ONCE]
            if isinstance(part, Dataset):
                yield from map(finish, part.x_u8.permute(0, 2, 3, 1).numpy())
            elif isinstance(part.store, FileStore):
                yield from pool.map(lambda number, store=part.store: finish(store.image(number)), part.index.tolist())
            else:
                yield from map(finish, part.store.read(part.index))


def _shrunk(image: np.ndarray, longest: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if longest is None or max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _format_summary(seen: Summary) -> str:
    lines: list[tuple[str, Any]] = [
        ("file", f"{seen['file']}, {seen['bytes'] / 1e6:,.1f} MB"),
        ("images", f"{seen['images']:,} ({seen['raw']:,} raw, {seen['jpg']:,} jpg)"),
        ("size", f"{_span(seen['width'])} x {_span(seen['height'])} px"),
        ("classes", f"{len(seen['classes'])}, {_span(sorted(seen['images_per_class']))} images each"),
        ("fields", ", ".join(seen["fields"])),
    ]
    return "\n".join(f"{name:10} {value}" for name, value in lines)


def _span(values: Sequence[int]) -> str:
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]}-{values[-1]}"


COMMANDS = {
    "write": Command(
        name="python -m train.loaders.ffcv write",
        about="Makes a .beton from any source of data.",
        schema=WriteConfig,
        work=run_write,
        format_summary=_format_summary,
        examples=EXAMPLES,
    ),
    "info": Command(
        name="python -m train.loaders.ffcv info",
        about="What a .beton holds.",
        schema=InfoConfig,
        work=run_info,
        format_summary=_format_summary,
        examples=EXAMPLES,
        positionals=("file",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 2 for bad input."""
    return run(OneOf("python -m train.loaders.ffcv", "FFCV's .beton files.", "action", COMMANDS, EXAMPLES), argv)
