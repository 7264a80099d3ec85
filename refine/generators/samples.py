"""A generator's samples as an image set: image k is sampled when it is read, and is the same whenever it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from refine.generators.functions import open_function
from refine.generators.generator_flags import DEFAULTS, GeneratorFlags, split_spec
from refine.generators.pipelines import UnetSampler, open_pipeline
from refine.generators.sampler import Blocks, Sampler, Sampling, Size
from refine.work_folder import Shards, WorkFolder, made_once
from robust_models.errors import UserError
from robust_models.images import Add, ImageGroups, ImageSet, write_images
from robust_models.images.arrays import opened_rows
from robust_models.images.image_set import Numbered
from robust_models.images.new_set import WRITERS, NewSet, writer_of
from robust_models.labels import listed_classes
from robust_models.runtime.distributed import Ranks
from robust_models.runtime.files import whole_file

if TYPE_CHECKING:
    from refine.guidance import Guidance

BLOCK, _PIXELS = 64, 1 << 20  # images in a block, and pixels where they are large: 64 up to 128 px, 4 of 512 px
SHARD = 256  # images at most: samples take long to make, and a killed run loses those of the shard that it was in
_AT_ONCE = 256  # images, while a set is written
_OF_A_GUIDE = ("norm", "loss", "against", "against_weight", "precision")  # settings of refinement that guidance shares


@dataclass(frozen=True, kw_only=True)
class Samples(ImageSet):
    """N images of a generator; they and their refined copies are written as `suffix` says, "" for a folder of PNG."""

    rows: Callable[[int, int], Tensor]  # (start, stop) -> uint8 [n,3,H,W]
    suffix: str
    files: str  # fingerprint of the generator's own

    kind = "generator"
    suffixes = tuple(WRITERS)

    @property
    def in_one_file(self) -> bool:
        return self.suffix in WRITERS

    def read(self, start: int, stop: int) -> Tensor:
        return self.rows(start, stop)

    def writer(
        self, out: Path, labels: np.ndarray | None, class_names: Sequence[str] | None
    ) -> AbstractContextManager[Add]:
        return writer_of(self.suffix)(out, NewSet(labels, class_names, self.names, self.size))


class Classes(NamedTuple):
    """The classes that are sampled in turn."""

    labels: np.ndarray  # int64 [K], of the set
    names: tuple[str, ...]  # that the labels index
    asked: Tensor  # int64 [K], the generator's own numbers of them


def open_samples(
    flags: GeneratorFlags,
    suffix: str,
    class_names: Sequence[str],
    device: torch.device,
    *,
    trust: bool,
    given: bool,
    guidance: "Guidance | None" = None,
) -> ImageGroups:
    """flags.num_images samples of flags.generator, one set. Two of them are made here, twice, to see what they are.

    class_names: the classifier's. given: whether the images are to be refined towards the classes they are made for;
    these must then be found among the classifier's. guidance: moves the images towards their classes as they form.
    UserError where the generator cannot be opened, is code and not trusted, does not fit, or makes other images of the
    same noise.
    """
    assert flags.generator is not None
    assert flags.num_images is not None
    kind, _ = split_spec(flags.generator)
    if kind == "diffusers":
        sampler, path, files = open_pipeline(flags, class_names, device, trust=trust)
    else:
        sampler, path, files = open_function(flags, device, trust=trust)
    n, batch = flags.num_images, sampler.batch or flags.generator_batch
    num_classes = sampler.num_classes
    if guidance is not None and num_classes is None:
        num_classes = len(class_names)  # of which the classifier makes what the generator alone would not
    given = given or guidance is not None
    classes = _classes(flags, num_classes, sampler.numbers, class_names, given=given)
    if guidance is not None:
        assert classes is not None
        sampler = _guided(flags, sampler, guidance, classes)
    sampling = Sampling(
        flags.generator, sampler, None if classes is None else classes.asked, flags.generator_seed, device
    )
    size = sampling.first_look(batch or min(2, n))
    count = batch or min(n, _largest_block(size))
    images = Samples(
        path,
        Numbered(n),
        size,
        None if classes is None else np.resize(classes.labels, n),
        None if classes is None else classes.names,
        about=f"samples of {flags.generator}",
        rows=Blocks(sampling, count, size),
        suffix=suffix,
        files=files,
    )
    return ImageGroups(
        path, (images,), (np.arange(n),), total=n, num_classes=0 if classes is None else len(classes.names)
    )


def _guided(flags: GeneratorFlags, sampler: Sampler, guidance: "Guidance", classes: Classes) -> Sampler:
    if not isinstance(sampler, UnetSampler):
        raise UserError(
            f"guide_eps: guidance is for diffusers pipelines in pixels (DDPMPipeline, DDIMPipeline), and "
            f"{flags.generator} is none; refine its images with --eps"
        )
    guidance.check(sampler.pipe.scheduler)
    targets = torch.zeros(int(classes.asked.max()) + 1, dtype=torch.int64)
    targets[classes.asked] = torch.from_numpy(classes.labels)
    return replace(sampler, guidance=guidance, targets=targets)


def _largest_block(size: Size) -> int:
    """A power of two, so that blocks do not lie across the ends of shards."""
    most = max(1, min(BLOCK, _PIXELS // (size[0] * size[1])))
    return 1 << (most.bit_length() - 1)


def _classes(
    flags: GeneratorFlags,
    num_classes: int | None,
    numbers: Mapping[str, int],
    class_names: Sequence[str],
    *,
    given: bool,
) -> Classes | None:
    if num_classes is None:
        if flags.classes is not None:
            raise UserError(f"classes: {flags.classes!r}, but {flags.generator} takes no classes; leave --classes out")
        return None
    labels = listed_classes(flags.classes, class_names)
    asked = [numbers.get(class_names[label].casefold(), -1) for label in labels]
    if -1 in asked and num_classes == len(class_names):
        asked = labels
    if -1 not in asked:
        return Classes(np.array(labels), tuple(class_names), torch.tensor(asked))
    if given or flags.classes is not None:
        stranger = class_names[labels[asked.index(-1)]]
        raise UserError(
            f"generator: {flags.generator} makes {num_classes} classes, the classifier knows {len(class_names)}, and "
            f"{'none of those is called' if numbers else 'those have no names to find'} {stranger}; choose common ones "
            "with --classes, or pass --targets pseudo"
        )
    own = np.arange(num_classes)
    return Classes(own, tuple(map(str, own)), torch.from_numpy(own))


def settings_of(images: ImageGroups) -> dict[str, Any]:
    """What decides the samples beside the flags."""
    samples = _samples(images)
    return {"generator files": samples.files, "generator labels": samples.class_names}


def samples_name(k: int) -> str:
    """The file in a run's work folder with the samples of shard k."""
    return f"samples-{k:05d}.npy"


def store(images: ImageSet, part: slice, file: Path) -> Iterator[int]:
    """Makes and keeps the samples of a shard; gives after each part how many there were in it."""
    shape = (part.stop - part.start, 3, *images.size)
    with whole_file(file) as partial, opened_rows(partial, shape, np.dtype(np.uint8), channels_first=True) as add:
        for start in range(part.start, part.stop, BLOCK):
            x = images.read(start, min(start + BLOCK, part.stop))
            add(x)
            yield len(x)


def stored(images: ImageGroups, work: WorkFolder, shards: Shards) -> ImageGroups:
    """The samples as they lie in the work folder, once all shards are stored."""

    def rows(start: int, stop: int) -> Tensor:
        parts: list[Tensor] = []
        while start < stop:
            k = shards.holder(start)
            part = shards.part(k)
            end = min(stop, part.stop)
            pixels = np.load(work.path / samples_name(k), mmap_mode="r")
            parts.append(torch.from_numpy(pixels[start - part.start : end - part.start].copy()))
            start = end
        return torch.cat(parts)

    return replace(images, sets=(replace(_samples(images), rows=rows),))


def check_raw(out: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """UserError, before any work, where the raw samples of a run with these settings may not be written."""
    WorkFolder(out).finished(_of_samples(settings), overwrite=overwrite)


def write_raw(images: ImageGroups, out: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Writes the samples as a set at `out`, whole; what an earlier run with equal settings left there is kept."""
    work = WorkFolder(out)

    def make(samples: Samples) -> dict[str, Any]:
        work.drop_assembled()
        with write_images(work.assembled, like=samples, labels=images.labels, class_names=images.class_names) as add:
            for _, x in samples.batches(_AT_ONCE):
                add(x)
        return {"out": str(out), "n": len(samples)}

    def begin() -> Samples:
        return replace(_samples(images), suffix=out.suffix.lower())

    made_once(Ranks(), work, _of_samples(settings), overwrite=overwrite, begin=begin, make=make)


def _samples(images: ImageGroups) -> Samples:
    samples = images.one_set()
    assert isinstance(samples, Samples)
    return samples


def _of_samples(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that decide its samples, not what becomes of them."""
    names = [*DEFAULTS, "generator files", "generator labels", "device"]
    if any(settings.get(name) is not None for name in ("guide_eps", "guide_scale")):
        names += [name for name in settings if name.startswith("ckpt") or name in _OF_A_GUIDE]
    return {name: settings.get(name) for name in names if name != "keep_raw"}
