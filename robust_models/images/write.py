"""A refined set beside its source: of the same kind, whole or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from robust_models.errors import UserError
from robust_models.images.folder import FileImages, FolderImages
from robust_models.images.image_set import (
    Add,
    ImageGroups,
    ImageSet,
    SaveAs,
    check_apart,
    check_groups_out,
    check_out,
    kind_of,
)
from robust_models.images.npz import NpzImages, npz_writer
from robust_models.images.open import is_image_file_or_set
from robust_models.images.pixels import DTYPES
from robust_models.runtime.files import check_replaces, whole_file, whole_folder


@contextmanager
def write_images(
    out: Path,
    *,
    like: ImageSet,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    save_as: SaveAs = "source",
) -> Iterator[Add]:
    """Gives `add(x [n,3,H,W])`, to be called batch by batch until len(like) images are there; then the set stands at
    `out`, of the kind, names, layout and depth of `like` (an `.npz` wherever `out` ends so). On an error nothing is
    left there, and what stood there before stands unchanged.

    x has the type that `like.read` gives; `from_float(x, like.depth)` makes it. labels [N] and class_names go into npz
    and pt; folders, tar shards and parquet files keep those of their source; an npy has none. Files of a folder are in
    the format of their source, of which JPEG (here of quality 95, with full colour resolution) has losses;
    save_as="png" has none. Tar shards and parquet files hold PNG.
    UserError: `out` names another kind; other than len(like) labels or images; x of another size or type; at `out`
    stands the source, a folder that is not empty, or a file that is no image set.
    """
    check_apart(out, like.path)
    to_npz = out.suffix.lower() == ".npz"
    if labels is not None and len(labels) != len(like):
        raise UserError(f"labels: {len(labels)} for {len(like)} images; give one for each")
    if not to_npz:
        check_out(out, like)
    in_one_file = to_npz or like.in_one_file
    if out.is_dir() if in_one_file else out.is_file():
        raise UserError(f"out: {out} is a {'folder' if in_one_file else 'file'}, but {kind_of(like)}")
    check_replaces(out, is_image_file_or_set, "image set")
    with (whole_file if in_one_file else whole_folder)(out) as partial:
        if to_npz and not isinstance(like, NpzImages):
            writer = npz_writer(partial, (len(like), *like.size, 3), np.dtype(like.depth), labels, class_names)
        elif isinstance(like, FileImages):
            writer = like.writer_of(out.suffix.lower(), partial)
        else:
            writer = _saved_as(save_as, like).writer(partial, labels, class_names)
        with writer as add, _checked(add, like) as checked:
            yield checked


@contextmanager
def write_image_groups(
    out: Path,
    *,
    like: ImageGroups,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    save_as: SaveAs = "source",
) -> Iterator[list[Add]]:
    """Gives one `add(x [n,3,H,W])` for each of like.sets, to be called in any order until all images are there; then
    they stand at `out`: every image in its own size, depth and name (class subfolders included), as write_images does.

    labels [N] and class_names are in the order of the whole. UserError as for write_images, and where images of
    several sizes are to become one file. On an error nothing is left at `out`.
    """
    if len(like.sets) == 1:
        with write_images(out, like=like.sets[0], labels=labels, class_names=class_names, save_as=save_as) as add:
            yield [add]
        return
    check_groups_out(out, like)
    check_apart(out, like.path)
    if out.is_file():
        raise UserError(f"out: {out} is a file, but images of several sizes become a folder; name another place")
    with whole_folder(out) as partial, ExitStack() as writers:
        adds: list[Add] = []
        for images in like.sets:
            add = writers.enter_context(_saved_as(save_as, images).writer(partial, None, None))
            adds.append(writers.enter_context(_checked(add, images)))
        yield adds


def _saved_as(save_as: SaveAs, like: ImageSet) -> ImageSet:
    return replace(like, save_as=save_as) if isinstance(like, FolderImages) else like


@contextmanager
def _checked(add: Add, like: ImageSet) -> Iterator[Add]:
    """`add` with its promises checked: each batch fits the set, and in the end all are there."""
    written = 0

    def checked(x: Tensor) -> None:
        nonlocal written
        if x.shape[1:] != (3, *like.size) or x.dtype != DTYPES[like.depth]:
            expected = f"{DTYPES[like.depth]} [n,3,{like.size[0]},{like.size[1]}]"
            raise UserError(
                f"add: {x.dtype} {list(x.shape)} came; expected {expected}, as images.read gives them; "
                "from_float(x, images.depth) makes them"
            )
        written += len(x)
        if written > len(like):
            raise UserError(f"add: {written} images for a set of {len(like)}")
        add(x)

    yield checked
    if written < len(like):
        raise UserError(f"add: {written} of {len(like)} images were added; nothing is written")
