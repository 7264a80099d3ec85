"""What is in memory does not grow with the number of images."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch

from robust_models import open_images, write_images
from tests.test_images_parquet import write_parquet
from tests.test_images_tar import shard

pa = pytest.importorskip("pyarrow")

SIDE, BATCH = 32, 50
IMAGE_BYTES = SIDE * SIDE * 3


def peak_bytes(path, out) -> int:
    """Of Python's and numpy's allocations, from opening to the copy's end: the least of three copies.

    What threads and other processes do meanwhile only ever adds to a peak; what grows with the images is in each.
    """
    return min(_peak_bytes(path, out) for _ in range(3))


def _peak_bytes(path, out) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        images = open_images(path)
        with write_images(out, like=images, labels=images.labels) as add:
            for _, x in images.batches(BATCH):
                add(x)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def make(path, n: int):
    pixels = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    match path.suffixes[-1]:
        case ".npy":
            np.save(path, pixels)
        case ".pt":
            torch.save({"images": torch.from_numpy(pixels), "labels": torch.zeros(n).long()}, path)
        case ".npz":
            (np.savez_compressed if "compressed" in path.name else np.savez)(path, arr_0=pixels, arr_1=np.zeros(n, int))
        case ".tar":
            shard(path, 0, pixels, np.zeros(n, int))
        case ".parquet":
            write_parquet(path, pixels, np.zeros(n, int), rows_per_group=50)
    return path


@pytest.mark.parametrize("name", ["x.npz", "compressed.npz", "x.npy", "x.pt", "x.tar", "x.parquet"])
def test_four_times_as_many_images_take_no_more_memory(tmp_path, name):
    n = {"x.tar": 75, "x.parquet": 150}.get(name, 600)  # more than what is read at once
    few, many = (make(tmp_path / str(count) / name, count) for count in _made(tmp_path, n, 4 * n))
    peak_bytes(few, tmp_path / "warm" / name)  # imports and caches of the first use
    small, large = (peak_bytes(path, tmp_path / "out" / path.parent.name / name) for path in (few, many))
    assert large - small < n * IMAGE_BYTES  # there are 3 n more images


def _made(root, *counts: int):
    for n in counts:
        (root / str(n)).mkdir()
    return counts


def test_row_groups_that_were_read_are_let_go(tmp_path):
    path = make(tmp_path / "x.parquet", 1600)
    images = open_images(path)
    before, arrow_bytes = pa.total_allocated_bytes(), 0
    for _ in images.batches(BATCH):
        arrow_bytes = max(arrow_bytes, pa.total_allocated_bytes() - before)
    assert 0 < arrow_bytes < path.stat().st_size / 3


def test_an_npz_is_read_by_the_batch(tmp_path, monkeypatch):
    images = open_images(make(tmp_path / "x.npz", 400))
    read: list[int] = []
    fromfile = np.fromfile

    def spy(file, dtype, count, **more):
        read.append(count * np.dtype(dtype).itemsize)
        return fromfile(file, dtype, count, **more)

    monkeypatch.setattr(np, "fromfile", spy)
    for _ in images.batches(BATCH):
        pass
    assert read == [BATCH * IMAGE_BYTES] * 8
