"""The order and the sharing that all loaders have in common, and the loaders that need nothing installed."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from robust_models import UserError
from robust_models.datasets import Dataset, open_dataset
from tests.tiny import loader_of, tiny_pixels
from train.loaders.base import MixedLoader, Order, pick_workers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 PNG files of 16 pixels in three class folders."""
    root = tmp_path_factory.mktemp("loaders") / "set"
    pixels, labels = tiny_pixels(40)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (root / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"class{label}" / f"{i}.png")
    return root


@pytest.fixture
def numbered():
    """50 one-pixel images that carry their own number."""
    x_u8 = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 3, 1, 1)
    return Dataset(x_u8, torch.arange(50), tuple(map(str, range(50))), "fifty")


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_gives_the_batches_of_resident(folder, workers):
    data = open_dataset(str(folder), "train")
    settings = {"batch_size": 12, "seed": 5, "device": CPU}
    resident = loader_of("resident", data, **settings)
    stream = loader_of("stream", data, workers=workers, **settings)
    assert resident.steps_per_epoch == stream.steps_per_epoch == 3
    for step in (0, 1, 2, 3, 4, 8, 2):  # in turn, over the end of epochs, forwards and back
        for ours, theirs in zip(stream.batch(step), resident.batch(step), strict=True):
            assert torch.equal(ours, theirs)
    stream.close()


def test_a_batch_is_a_function_of_seed_and_step(numbered):
    loader = loader_of("resident", numbered, batch_size=8, seed=1, device=CPU)
    in_turn = [loader.batch(step)[1] for step in range(14)]
    resumed = loader_of("resident", numbered, batch_size=8, seed=1, device=CPU).batches(9)
    assert all(torch.equal(next(resumed)[1], in_turn[step]) for step in range(9, 14))
    x_u8, y = loader_of("resident", numbered, batch_size=8, seed=2, device=CPU).batch(0)
    assert not torch.equal(y, in_turn[0])
    assert torch.equal(x_u8[:, 0, 0, 0].long(), y)


def test_processes_share_each_batch_as_one_would_have_had_it(numbered):
    alone = Order(50, 12, seed=7)
    shared = [Order(50, 12, seed=7, rank=rank, world=3) for rank in range(3)]
    for epoch in (0, 1):
        together = torch.cat([order.epoch(epoch) for order in shared], 1)
        assert torch.equal(together, alone.epoch(epoch))
        assert len(together.unique()) == 48
    batch = loader_of("resident", numbered, batch_size=12, seed=7, device=CPU, rank=2, world=3).batch(5)[1]
    assert torch.equal(batch, alone.epoch(1)[1, 8:])


def test_a_random_crop_is_a_function_of_seed_epoch_and_image(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    data = open_dataset(str(tmp_path), "train", image_size=16)
    first, again = (
        loader_of("stream", data, batch_size=8, seed=0, device=CPU, workers=0, random_crop=True) for _ in "12"
    )
    x_u8, y = first.batch(1)
    assert x_u8.shape == (8, 3, 16, 16)
    assert torch.equal(x_u8, again.batch(1)[0])
    # The same images in the next epoch, cut elsewhere: sorted by label and brightness they still differ.
    assert not torch.equal(
        x_u8.float().mean(dim=(1, 2, 3)).sort()[0], first.batch(2)[0].float().mean(dim=(1, 2, 3)).sort()[0]
    )
    assert torch.equal(y.sort()[0], first.batch(2)[1].sort()[0])
    with pytest.raises(
        UserError, match=r"data\.random_crop: resident keeps one square of each image; give --data\.loader"
    ):
        loader_of("resident", data, batch_size=4, seed=0, device=CPU, random_crop=True)


def test_bad_input_is_refused_before_any_work(numbered, monkeypatch):
    settings = {"seed": 0, "device": CPU}
    with pytest.raises(UserError, match="batch_size: 51 is more than the 50 training images of fifty"):
        loader_of("stream", numbered, batch_size=51, **settings)
    with pytest.raises(UserError, match="batch_size: 10 cannot be shared by 4 processes; give a multiple of 4"):
        loader_of("resident", numbered, batch_size=10, rank=0, world=4, **settings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    with pytest.raises(UserError, match=r"data\.workers: 3 is more than the 2 cores that this process may use; give 2"):
        loader_of("stream", numbered, batch_size=10, workers=3, **settings)
    assert [pick_workers(None), pick_workers(0), pick_workers(2)] == [2, 0, 2]
    with pytest.raises(
        UserError, match=r"data\.loader: ffcv reads \.beton files, got fifty; make one: python -m train"
    ):
        loader_of("ffcv", numbered, batch_size=10, **settings)


# With a generator's images


def both(numbered, *, made: int = 6, world: int = 1, rank: int = 0) -> MixedLoader:
    """Numbers 0 to 49 are real; a generator made 100 to 119."""
    x_u8 = torch.arange(100, 120, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 1, 1)
    generated = Dataset(x_u8, torch.arange(100, 120), numbered.class_names, "made")
    common = {"seed": 3, "device": CPU, "rank": rank, "world": world}
    real = loader_of("resident", numbered, batch_size=16 - made, **common)
    return MixedLoader(real, loader_of("resident", generated, batch_size=made, **common))


@pytest.mark.parametrize("made", [2, 6, 8, 14])
def test_every_batch_has_its_share_of_generated_images(numbered, made):
    loader = both(numbered, made=made)
    assert loader.steps_per_epoch == 50 // 16
    for step in range(7):
        x_u8, y = loader.batch(step)
        assert torch.equal(x_u8[:, 0, 0, 0].long(), y)
        assert len(y) == 16
        assert (y >= 100).sum() == made


def test_all_images_of_both_kinds_are_seen_before_one_comes_again(numbered):
    loader = both(numbered, made=6)
    seen = torch.cat([loader.batch(step)[1] for step in range(15)])
    real, made = seen[seen < 100], seen[seen >= 100]
    assert len(real[:50].unique()) == 50
    assert [len(part.unique()) for part in made[: 18 * 5].split(18)] == [18] * 5  # 20, of which 2 make no batch


def test_mixed_batches_are_a_function_of_seed_and_step(numbered):
    in_turn = [both(numbered).batch(step)[1] for step in range(9)]
    resumed = both(numbered)
    assert all(torch.equal(resumed.batch(step)[1], in_turn[step]) for step in (5, 6, 2, 8))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_mixed_batch_as_one_would_have_had_it(numbered, world):
    alone, made = both(numbered, made=8), 8
    for step in range(4):
        parts = [both(numbered, made=made, world=world, rank=rank).batch(step)[1] for rank in range(world)]
        assert torch.equal(torch.cat(parts), alone.batch(step)[1])
