"""Images of any sizes: sets of one size each, and a writer that puts every image back under its own name."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_models.errors import UserError
from robust_models.images.encoded import Seen, difference
from robust_models.images.folder import FolderImages
from robust_models.images.image_set import Add, ImageSet, check_out
from robust_models.images.write import checked_add, write_images
from robust_models.runtime.files import whole_folder


@dataclass(frozen=True)
class ImageGroups:
    """All images of a path, as sets whose images have one size and depth; only a folder of files has several.

    The sets are in the order of their first images. Labels and class names are those of the whole: equal class names
    in every set. len() is the number of images.
    """

    path: Path
    sets: tuple[ImageSet, ...]
    places: tuple[np.ndarray, ...]  # int64 [n] each: places[g][i] is the number of image i of sets[g] among all images

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def skipped(self) -> tuple[str, ...]:
        """What could not be read, with on_error="skip"."""
        return self.sets[0].skipped

    @property
    def names(self) -> list[str]:
        """The name of every image, in the order of the whole."""
        names = [""] * len(self)
        for images, places in zip(self.sets, self.places, strict=True):
            for place, name in zip(places.tolist(), images.names, strict=True):
                names[place] = name
        return names

    @property
    def about(self) -> str:
        """What was found: "folder, uint8", or "folder, 3 sizes from 32x48 to 640x480"."""
        if len(self.sets) == 1:
            return self.sets[0].about
        sizes = sorted({images.size for images in self.sets}, key=lambda size: size[0] * size[1])
        (height, width), (last_height, last_width) = sizes[0], sizes[-1]
        return f"{self.sets[0].kind}, {len(sizes)} sizes from {width}x{height} to {last_width}x{last_height}"

    def one_set(self) -> ImageSet:
        """The set, for uses that need one size. UserError, one line, where there are several."""
        first, *others = self.sets
        if others:
            other = others[0]
            seen = [Seen(images.size, images.depth) for images in (first, other)]
            raise UserError(difference(self.path, _file(first), seen[0], _file(other), seen[1]))
        return first


@contextmanager
def write_image_groups(
    out: Path, *, like: ImageGroups, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> Iterator[list[Add]]:
    """Gives one `add(x [n,3,H,W])` for each of like.sets, to be called in any order until all images are there; then
    they stand at `out`: every image in its own size, depth and name (class subfolders included), as write_images does.

    labels [N] and class_names are in the order of the whole. UserError as for write_images, and where images of
    several sizes are to become one file. On an error nothing is left at `out`.
    """
    if len(like.sets) == 1:
        with write_images(out, like=like.sets[0], labels=labels, class_names=class_names) as add:
            yield [add]
        return
    check_groups_out(out, like)
    if out.is_file():
        raise UserError(f"out: {out} is a file, but images of several sizes become a folder; name another place")
    with whole_folder(out) as partial, ExitStack() as writers:
        adds: list[Add] = []
        for images in like.sets:
            add = writers.enter_context(images.writer(partial, None, None))
            adds.append(writers.enter_context(checked_add(add, images)))
        yield adds


def check_groups_out(out: Path, like: ImageGroups) -> None:
    """UserError where the name of `out` contradicts the kind of `like`; to be called before any work."""
    check_out(out, like.sets[0])
    if len(like.sets) > 1 and out.suffix.lower() == ".npz":
        raise UserError(f"out: {out} is one array, but the images have several sizes; name a folder")


def _file(images: ImageSet) -> str:
    return images.files[0] if isinstance(images, FolderImages) else images.names[0]
