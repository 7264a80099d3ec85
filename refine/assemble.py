"""From finished shards to the refined set and its manifest, each put in its place by a rename."""

from typing import Any

import torch

from refine.manifest import Means
from refine.work_folder import Shards, WorkFolder, as_line
from robust_models.images import ImageSet, write_images
from robust_models.runtime.files import whole_file

_AT_ONCE = 256  # images


def assemble(work: WorkFolder, images: ImageSet, shards: Shards) -> dict[str, float]:
    """Builds the set, of the same kind as `images`, and the manifest inside the work folder; gives N and the means."""
    with write_images(work.assembled, like=images, labels=images.labels, class_names=images.class_names) as add:
        for k in range(len(shards)):
            pixels = work.pixels(k)
            for start in range(0, len(pixels), _AT_ONCE):
                add(torch.from_numpy(pixels[start : start + _AT_ONCE].copy()))
    means = Means()
    with whole_file(work.manifest) as partial, partial.open("w", encoding="utf-8") as manifest:
        for k in range(len(shards)):
            for row in work.rows(k):
                means.add(row)
                manifest.write(as_line(row))
    return means.summary()


def publish(work: WorkFolder) -> dict[str, Any]:
    """Moves what assemble() built to its place and removes the work folder; gives the summary.

    Each step is passed over where it is already done, so that a kill here costs nothing either.
    """
    summary = work.read_summary()
    if work.manifest.exists():
        work.manifest.replace(work.manifest_out)
    if work.assembled.exists():
        if work.out.is_dir():
            work.out.rename(work.path / "replaced")
        work.assembled.replace(work.out)
    work.remove()
    return summary
