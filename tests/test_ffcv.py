""".beton files: written and read without FFCV; with it, its loader gives what the others give."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from robust_models import UserError
from robust_models.datasets import load_dataset, open_dataset
from robust_models.datasets.beton import HEADER, open_beton, write_beton
from tests.tiny import loader_of, tiny_pixels
from train.loaders.ffcv.cli import main
from train.loaders.ffcv.loader import INSTALL

CPU = torch.device("cpu")
NAMES = ("red", "green", "blue")


@pytest.fixture
def beton(tmp_path):
    """50 raw images of 16 pixels."""
    pixels, labels = tiny_pixels(50)
    write_beton(tmp_path / "tiny.beton", iter(pixels), labels, NAMES)
    return tmp_path / "tiny.beton"


@pytest.fixture
def smooth_images():
    """24 images of different sizes without sharp edges, so that two ways to resize them nearly agree."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in range(24)]
    sizes = rng.integers(20, 50, (24, 2)).tolist()
    return [np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image, size in zip(noise, sizes, strict=True)]


@pytest.fixture
def ffcv():
    return pytest.importorskip("ffcv", reason=f"needs FFCV: {INSTALL}", exc_type=ImportError)


def test_a_raw_beton_gives_back_what_was_written(beton):
    pixels, labels = tiny_pixels(50)
    data = load_dataset(str(beton), "train")
    assert np.array_equal(data.x_u8.numpy().transpose(0, 2, 3, 1), pixels)
    assert data.y.tolist() == labels.tolist()
    assert data.class_names == NAMES


def test_images_lie_within_pages_and_a_large_one_is_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 1000, 1000, 3), dtype=np.uint8)
    write_beton(tmp_path / "large.beton", iter(images), np.arange(5), tuple("abcde"))
    store, _ = open_beton(tmp_path / "large.beton")
    page = int(np.fromfile(tmp_path / "large.beton", HEADER, 1)[0]["page_size"])
    assert all(at // page == (at + 3_000_000 - 1) // page for at in store.samples["at"].tolist())
    assert all(np.array_equal(store.image(i), images[i]) for i in range(5))
    with pytest.raises(UserError, match="an image of 12,000,000 bytes; at most 8,388,608: give --max-resolution"):
        write_beton(tmp_path / "larger.beton", iter([np.zeros((2000, 2000, 3), np.uint8)]), np.zeros(1), ("a",))
    assert not (tmp_path / "larger.beton").exists()


def test_the_command_makes_a_beton_from_any_source(tmp_path, labelled_npz, smooth_images, capsys):
    assert main(["write", "--data", str(labelled_npz), "--out", str(tmp_path / "a.beton")]) == 0
    assert torch.equal(
        load_dataset(str(tmp_path / "a.beton"), "train").x_u8, load_dataset(str(labelled_npz), "train").x_u8
    )
    for i, image in enumerate(smooth_images):
        (tmp_path / "set" / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / f"class{i % 3}" / f"{i}.png")
    options = ["--mode", "jpg", "--quality", "95", "--max-resolution", "40"]
    assert main(["write", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "b.beton"), *options]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "b.beton")]) == 0
    told = capsys.readouterr().out
    assert "24 (0 raw, 24 jpg)" in told
    assert "-40 x " in told
    ours, theirs = (load_dataset(str(tmp_path / name), "train", image_size=20) for name in ("b.beton", "set"))
    assert ours.class_names == theirs.class_names == ("class0", "class1", "class2")
    assert torch.equal(ours.y, theirs.y)
    assert (ours.x_u8.float() - theirs.x_u8.float()).abs().mean() < 6  # of 255: shrunk before, and JPEG
    assert main(["write", "--data", str(labelled_npz), "--out", str(tmp_path / "a.beton")]) == 2
    assert "a.beton exists; choose another name or pass --overwrite" in capsys.readouterr().err
    assert main(["write", "--data", str(labelled_npz), "--out", str(tmp_path / "a.npz")]) == 2
    assert "a.npz does not end in .beton" in capsys.readouterr().err


def test_a_bad_beton_is_told_in_one_line(beton, tmp_path, smooth_images):
    with pytest.raises(
        UserError, match=r"data\.image_size: 32 px, but .* made for another resolution .* 16 px at most"
    ):
        open_dataset(str(beton), "train", image_size=32)
    with pytest.raises(UserError, match=r"nowhere\.beton: no such file"):
        open_dataset(str(tmp_path / "nowhere.beton"), "train")
    for size, message in ((10, "not a readable|cut short"), (1000, "cut short"), (9_000_00, "cut short")):
        (tmp_path / "cut.beton").write_bytes(beton.read_bytes()[:size])
        with pytest.raises(UserError, match=message):
            open_dataset(str(tmp_path / "cut.beton"), "train")
    write_beton(tmp_path / "labels.beton", iter(tiny_pixels(3)[0]), np.array([0, 7, 1]), NAMES)
    with pytest.raises(UserError, match="labels run from 0 to 7; expected 0 to 2"):
        open_dataset(str(tmp_path / "labels.beton"), "train")
    write_beton(tmp_path / "sizes.beton", iter(smooth_images), np.arange(24) % 3, NAMES)
    with pytest.raises(UserError, match=r"images of several sizes, or not square; say --data\.image-size"):
        open_dataset(str(tmp_path / "sizes.beton"), "train")


def test_without_ffcv_the_steps_to_install_it_are_told(beton, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(UserError, match=r"ffcv cannot be imported here .*libopencv-dev.* && pip install ffcv==1\.0\.2"):
        loader_of("ffcv", open_dataset(str(beton), "train"), batch_size=8, seed=0, device=CPU, workers=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_loaders_give_the_same_batches_for_the_same_seed(ffcv, beton):
    data = open_dataset(str(beton), "train")
    settings = {"batch_size": 12, "seed": 4, "device": CPU}
    loaders = {
        "resident": loader_of("resident", data, **settings),
        "stream": loader_of("stream", data, workers=0, **settings),
        "ffcv": loader_of("ffcv", data, workers=1, **settings),
    }
    threads = torch.get_num_threads()
    for step in (0, 1, 2, 3, 4, 5, 2, 9):
        batches = {name: loader.batch(step) for name, loader in loaders.items()}
        for name in ("stream", "ffcv"):
            assert torch.equal(batches[name][0], batches["resident"][0]), (name, step)
            assert torch.equal(batches[name][1], batches["resident"][1]), (name, step)
    kept = loaders["ffcv"].batch(9)[0]
    before = kept.clone()
    for step in range(10, 30):  # FFCV's ring of buffers goes round; what was given stays
        loaders["ffcv"].batch(step)
    assert torch.equal(kept, before)
    assert torch.get_num_threads() == threads
    shared = loader_of("ffcv", data, workers=1, rank=1, world=2, **settings)
    assert torch.equal(shared.batch(5)[0], loaders["resident"].batch(5)[0][6:])
    for loader in (loaders["ffcv"], shared):
        loader.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("random_crop", [True, False])
def test_ffcv_cuts_the_boxes_that_stream_cuts(ffcv, tmp_path, smooth_images, random_crop):
    write_beton(tmp_path / "sizes.beton", iter(smooth_images), np.arange(24) * 7 % 3, NAMES, jpeg_quality=95)
    data = open_dataset(str(tmp_path / "sizes.beton"), "train", image_size=16)
    settings = {"batch_size": 12, "seed": 4, "device": CPU, "random_crop": random_crop}
    stream, compiled = (loader_of(name, data, workers=1, **settings) for name in ("stream", "ffcv"))
    for step in (0, 3):
        ours, theirs = compiled.batch(step)[0].float(), stream.batch(step)[0].float()
        difference = (ours - theirs).abs()
        assert difference.mean() < 4  # of 255: OpenCV and libjpeg-turbo against Pillow
        assert difference.mean() < 0.1 * (ours - theirs.roll(1, 0)).abs().mean()
    compiled.close()
    stream.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_beton_of_ffcvs_own_writer_is_read(ffcv, tmp_path):
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    pixels, labels = tiny_pixels(30)
    fields = {"weight": FloatField(), "photo": RGBImageField(write_mode="raw"), "class": IntField()}
    path = tmp_path / "theirs.beton"
    samples = [(0.5, image, int(label)) for image, label in zip(pixels, labels, strict=True)]
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)
    data = load_dataset(str(path), "train")
    assert np.array_equal(data.x_u8.numpy().transpose(0, 2, 3, 1), pixels)
    assert data.y.tolist() == labels.tolist()
    assert data.class_names == ("0", "1", "2")
    settings = {"batch_size": 10, "seed": 0, "device": CPU}
    loader = loader_of("ffcv", open_dataset(str(path), "train"), workers=1, **settings)
    assert torch.equal(loader.batch(4)[0], loader_of("resident", data, **settings).batch(4)[0])
    loader.close()
