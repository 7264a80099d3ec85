from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets

from robust_models import UserError, load_dataset
from robust_models.datasets import CIFAR10_CLASSES
from tests.tiny import tiny_pixels


def test_cifar10_comes_from_torchvision_in_our_layout(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    asked = {}

    class Fake:
        def __init__(self, root, *, train, download):
            asked.update(root=root, train=train, download=download)
            self.data, self.targets = pixels, [3, 1, 4, 1]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = load_dataset("cifar10:somewhere", "test")
    assert asked == {"root": "somewhere", "train": False, "download": True}
    assert np.array_equal(data.x_u8.numpy().transpose(0, 2, 3, 1), pixels)
    assert data.y.tolist() == [3, 1, 4, 1]
    assert data.class_names == CIFAR10_CLASSES
    load_dataset("cifar10", "train")
    assert asked == {"root": "data", "train": True, "download": True}


def test_a_failed_download_says_what_to_do_instead(tmp_path, monkeypatch):
    def offline(*args, **rest):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"cifar10: not under .* put cifar-10-python.tar.gz there, or give an \.npz"):
        load_dataset(f"cifar10:{tmp_path}", "train")


def test_an_npz_may_name_its_classes_and_must_have_labels(tmp_path):
    pixels, labels = tiny_pixels(6)
    np.savez(tmp_path / "named.npz", arr_0=pixels, arr_1=labels, class_names=np.array(["red", "green", "blue"]))
    assert load_dataset(str(tmp_path / "named.npz"), "train").class_names == ("red", "green", "blue")
    np.savez(tmp_path / "bare.npz", arr_0=pixels)
    with pytest.raises(UserError, match=r"no labels; an \.npz needs arr_1"):
        load_dataset(str(tmp_path / "bare.npz"), "train")
    np.savez(tmp_path / "wide.npz", arr_0=pixels[:, :8], arr_1=labels)
    with pytest.raises(UserError, match="images are 16x8; classifiers take square images"):
        load_dataset(str(tmp_path / "wide.npz"), "train")
    np.savez(tmp_path / "below.npz", arr_0=pixels, arr_1=labels - 1)
    with pytest.raises(UserError, match="labels run from -1 to 1; expected 0 to 1"):
        load_dataset(str(tmp_path / "below.npz"), "train")


def test_a_set_in_class_order_is_shuffled_always_alike_and_any_other_is_not(tmp_path):
    pixels, labels = tiny_pixels(60)
    for name, order in (("sorted", np.argsort(labels, kind="stable")), ("mixed", np.arange(60))):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels[order], arr_1=labels[order])
    mixed = load_dataset(str(tmp_path / "mixed.npz"), "train")
    assert mixed.y.tolist() == labels.tolist()
    first, again = (load_dataset(str(tmp_path / "sorted.npz"), "train") for _ in range(2))
    assert first.y.tolist() == again.y.tolist() != sorted(labels.tolist())
    assert set(first.y[-15:].tolist()) == {0, 1, 2}
    # Each image keeps its label: the brightest channel.
    assert np.array_equal(first.x_u8.float().mean(dim=(2, 3)).argmax(1).numpy(), first.y.numpy())
