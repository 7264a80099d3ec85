"""WebDataset tar shards: one `.tar`, a folder of them, or a pattern such as `shards/{000..009}.tar`."""

import os
import tarfile
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.encoded import Encoded, EncodedImages, Fetch, feeding, survey
from robust_models.images.folder_files import Packed
from robust_models.images.image_set import ALL, Add, OnError, Opened, Sample
from robust_models.images.tar_members import check_size, extension, forget_members, opened, samples


@dataclass(frozen=True, kw_only=True)
class TarImages(EncodedImages):
    """The images of WebDataset shards."""

    shards: tuple[Path, ...]
    places: np.ndarray  # int64 [N,3]: each image's shard, first byte and number of bytes

    kind = "tar"
    suffixes = (".tar",)

    @property
    def in_one_file(self) -> bool:
        return self.shards == (self.path,)

    def encoded(self, start: int, stop: int) -> Sequence[Fetch]:
        return _fetches(self.shards, self.places)(range(start, stop))

    @contextmanager
    def writer(self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None) -> Iterator[Add]:
        """Shards of the same names with the same samples: the image as PNG, everything else (labels too) as it was."""
        written = 0
        with feeding(_rewritten(self, out)) as give:

            def add(x: Tensor) -> None:
                nonlocal written
                for png in self.as_png(written, x):
                    give(png)
                written += len(x)

            yield add


def open_tar(path: Path, shards: Sequence[Path], on_error: OnError, only: Sample = ALL) -> Opened:
    """The set in `shards`, which `path` names. One pass over headers and labels, one that decodes the sample."""
    shards = tuple(shards)
    names, members, places, labels = Packed(), Packed(), array("q"), array("q")
    unlabelled = Packed()
    for number, shard in enumerate(shards):
        prefix = "" if len(shards) == 1 else f"{shard.stem}/"
        with opened(shard) as archive:
            for sample in samples(shard, archive):
                image, label = sample.image, sample.label(archive)
                if image is None:
                    if label is not None:
                        raise UserError(f"{shard}: sample {sample.key} has a label but no image")
                    continue
                check_size(shard, image)
                names.append(f"{prefix}{sample.key}")
                members.append(image.name if path == shard else f"{shard.name}: {image.name}")
                places.extend((number, image.offset_data, image.size))
                if label is None:
                    unlabelled.append(sample.key)
                else:
                    labels.append(label)
    if not names:
        raise UserError(f"{path}: no images in {len(shards)} tar shards")
    if labels and unlabelled:
        raise UserError(
            f"{path}: {len(names)} images but {len(labels)} labels: sample {unlabelled[0]} has neither .cls nor a "
            "label in .json"
        )
    table, y = np.array(places, np.int64).reshape(-1, 3), np.array(labels, np.int64) if labels else None
    found = survey(path, members, _fetches(shards, table), on_error, labels=y, sample=only)
    seen, table = found.one_kind(path, members), table[found.kept]
    shards = shards[: int(table[-1, 0]) + 1]  # behind the last image there are none of a sample
    images = TarImages(
        path,
        Packed(names[i] for i in found.kept) if len(found.kept) < len(names) else names,
        seen.size,
        None if y is None else y[found.kept],
        None,
        found.skipped,
        depth=seen.depth,
        about=f"{len(shards)} tar shard{'s' if len(shards) > 1 else ''}, {seen.depth}",
        shards=shards,
        places=table,
    )
    return Opened(images, found.places, len(names), y)


def _fetches(shards: Sequence[Path], places: np.ndarray) -> Encoded:
    return lambda numbers: [
        partial(_read_part, shards[shard], offset, size) for shard, offset, size in places[numbers].tolist()
    ]


def _read_part(file: Path, offset: int, size: int) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _rewritten(images: TarImages, out: Path) -> Generator[None, bytes, None]:
    """Copies shard by shard and asks for each image's PNG in turn; what was skipped in reading is left out whole."""
    written = 0
    for number, shard in enumerate(images.shards):
        with opened(shard) as source, tarfile.open(_place(images, shard, out), "w") as target:
            for sample in samples(shard, source):
                image = sample.image
                if image is not None and _is_skipped(images, written, number, image.offset_data):
                    continue
                for member in sample.members:
                    if member is image:
                        png = yield
                        target.addfile(_as_png(member, len(png)), BytesIO(png))
                        written += 1
                    else:
                        target.addfile(member, source.extractfile(member))
                forget_members(target)


def _is_skipped(images: TarImages, written: int, shard: int, offset: int) -> bool:
    return written == len(images) or tuple(images.places[written, :2]) != (shard, offset)


def _as_png(member: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    info = copy(member)
    info.name = member.name[: -len(extension(member))] + "png"
    info.size = size
    # In a source's extended header these would win over the fields.
    info.pax_headers = {key: value for key, value in member.pax_headers.items() if key not in ("path", "size")}
    return info


def _place(images: TarImages, shard: Path, out: Path) -> Path:
    if images.in_one_file:
        return out
    root = os.path.commonpath([shard.parent for shard in images.shards])
    place = out / shard.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
