import io
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from robust_models import UserError, load_dataset
from robust_models.datasets import CIFAR10_CLASSES, RESTRICTED_IMAGENET, LazyDataset, open_dataset
from robust_models.datasets import dataset as dataset_module
from robust_models.datasets.crops import centre_boxes, centre_crop, random_boxes, uniforms
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


def save_image(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """val/ with the 1,000 folders of ImageNet, one image each, whose red and green tell its synset."""
    root = tmp_path_factory.mktemp("imagenet")
    for i in range(1000):
        pixels = np.full((12, 16, 3), (i // 256, i % 256, 0), np.uint8)
        save_image(root / "val" / f"n{10_000_000 + 37 * i}" / "1.png", pixels)
    return root


def synsets_of(data):
    x_u8 = data.read(torch.arange(len(data)))
    return x_u8[:, 0, 0, 0].long() * 256 + x_u8[:, 1, 0, 0]


def test_cifar100_has_its_own_names_and_archive(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, *, train, download):
            self.data, self.targets = np.zeros((2, 32, 32, 3), np.uint8), [99, 0]
            self.classes = [f"kind {i}" for i in range(100)]

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Fake)
    data = load_dataset("cifar100:somewhere", "train")
    assert (len(data.class_names), data.class_names[99], data.y.tolist()) == (100, "kind 99", [99, 0])
    with pytest.raises(UserError, match=r"data\.image_size: cifar100 has images of 32 px, asked for 64"):
        load_dataset("cifar100", "train", image_size=64)


def test_imagenet_is_read_on_demand_in_the_order_of_its_synsets(imagenet, tmp_path):
    data = open_dataset(f"imagenet:{imagenet}", "test", image_size=8)
    assert isinstance(data, LazyDataset)
    assert data.y.sort()[0].tolist() == list(range(1000))
    assert data.y.tolist() != list(range(1000))  # shuffled
    assert torch.equal(synsets_of(data), data.y)
    assert data.read(torch.tensor([3])).shape == (1, 3, 8, 8)
    assert (data.class_names[0], len(data.class_names), data.resize_to) == ("0", 1000, 9)
    with pytest.raises(UserError, match="no folder train/ for train images"):
        open_dataset(f"imagenet:{imagenet}", "train")
    save_image(tmp_path / "val" / "cat" / "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="1 class folders; ImageNet has 1,000, named by synset"):
        open_dataset(f"imagenet:{tmp_path}", "test")


def test_restricted_imagenet_has_nine_super_classes(imagenet):
    data = open_dataset(f"restricted_imagenet:{imagenet}", "test", image_size=8)
    assert data.class_names == ("dog", "cat", "frog", "turtle", "bird", "primate", "fish", "crab", "insect")
    assert len(data) == 118 + 5 + 3 + 5 + 21 + 18 + 9 + 4 + 20
    for synset, label in zip(synsets_of(data).tolist(), data.y.tolist(), strict=True):
        first, last = RESTRICTED_IMAGENET[data.class_names[label]]
        assert first <= synset <= last


def test_cinic10_takes_the_split_that_is_asked_for(tmp_path):
    for split, level in (("train", 10), ("valid", 20), ("test", 30)):
        for name in CIFAR10_CLASSES:
            save_image(tmp_path / split / name / "1.png", np.full((32, 32, 3), level, np.uint8))
    for split, level in (("train", 10), ("test", 30)):
        data = load_dataset(f"cinic10:{tmp_path}", split)
        assert data.class_names == CIFAR10_CLASSES
        assert data.x_u8.unique().tolist() == [level]
    save_image(tmp_path / "train" / "whale" / "1.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="11 class folders; CINIC-10 has 10"):
        load_dataset(f"cinic10:{tmp_path}", "train")


@pytest.mark.parametrize("kind", ["set.pt", "set.tar", "set.parquet", "set"])
def test_every_kind_of_labelled_set_gives_the_same_data(tmp_path, kind):
    pixels, labels = tiny_pixels(12)
    x_u8 = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    if kind == "set.pt":
        torch.save({"images": x_u8, "labels": torch.from_numpy(labels)}, tmp_path / kind)
    elif kind == "set.tar":
        write_tar(tmp_path / kind, pixels, labels)
    elif kind == "set.parquet":
        write_parquet(tmp_path / kind, pixels, labels)
    else:
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            save_image(tmp_path / kind / "test" / str(label) / f"{i:02d}.png", image)
    data = load_dataset(str(tmp_path / kind), "test")
    brightest = data.x_u8.float().mean(dim=(2, 3)).argmax(1)
    assert torch.equal(brightest, data.y)
    assert sorted(map(bytes, data.x_u8.numpy())) == sorted(map(bytes, x_u8.numpy()))
    assert data.class_names == ("0", "1", "2")
    lazy = open_dataset(str(tmp_path / kind), "test")
    some = torch.tensor([7, 2, 3, 4, 11])
    assert torch.equal(lazy.read(some), data.x_u8[some])
    assert torch.equal(lazy[3:9].read(torch.tensor([0, 5])), data.x_u8[[3, 8]])


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, pixels, labels):
    with tarfile.open(path, "w") as archive:
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            for name, content in ((f"{i:03d}.png", png(image)), (f"{i:03d}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_parquet(path, pixels, labels):
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "bigroc[parquet]"')
    from pyarrow.parquet import write_table

    images = [{"bytes": png(image), "path": None} for image in pixels]
    write_table(pyarrow.table({"image": images, "label": labels}), path)


def test_images_of_many_sizes_become_squares_of_the_size_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(((20, 30), (33, 17), (16, 16), (9, 40))):
        save_image(tmp_path / f"class{i % 2}" / f"{i}.png", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="mixed sizes"):
        load_dataset(str(tmp_path), "train")
    data = load_dataset(str(tmp_path), "train", image_size=16)
    assert data.x_u8.shape == (4, 3, 16, 16)
    untouched = np.asarray(Image.open(tmp_path / "class0" / "2.png")).transpose(2, 0, 1)
    assert any(np.array_equal(x, untouched) for x in data.x_u8.numpy())


def test_a_folder_that_is_no_data_is_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images here or below \(looked for \.bmp"):
        load_dataset(str(tmp_path / "empty"), "train", image_size=16)
    save_image(tmp_path / "flat" / "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"1\.png lies in no class subfolder; labels come from subfolders"):
        load_dataset(str(tmp_path / "flat"), "train", image_size=8)
    save_image(tmp_path / "half" / "train" / "cat" / "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="half: no folder test/ or val/ or valid/ for test images"):
        load_dataset(str(tmp_path / "half"), "test")


def test_a_set_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        save_image(tmp_path / name / "1.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(dataset_module, "_memory_bytes", lambda: 100)
    with pytest.raises(
        UserError, match=r"2 images of 8 px .* read them as they are needed: --data\.loader stream or ffcv"
    ):
        load_dataset(str(tmp_path), "train")


def test_a_centre_crop_keeps_the_middle():
    x = np.zeros((10, 20, 3), np.uint8)
    x[:, 5:15] = 200
    assert (centre_crop(x, 10, 10) == 200).all()
    assert centre_boxes(np.array([[10, 20], [256, 512]]), 224, 256).tolist() == [[0, 5, 9, 9], [16, 144, 224, 224]]


def test_random_boxes_lie_in_their_images_and_follow_seed_epoch_and_number():
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 400, (500, 2)), [[1, 1], [1, 300], [300, 1]]])
    numbers = np.arange(len(sizes))
    boxes = random_boxes(sizes, 0, 0, numbers)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    backwards = random_boxes(sizes[::-1], 0, 0, numbers[::-1])[::-1]
    assert np.array_equal(backwards, boxes)  # neighbours in a batch do not matter
    large = np.full((4000, 2), 224)
    boxes = random_boxes(large, 0, 0, np.arange(4000))
    for other in (random_boxes(large, 0, 1, np.arange(4000)), random_boxes(large, 1, 0, np.arange(4000))):
        assert (boxes == other).all(1).mean() < 0.01
    area, aspect = boxes[:, 2] * boxes[:, 3] / 224**2, boxes[:, 3] / boxes[:, 2]
    assert 0.08 * 0.97 < area.min() < 0.1
    assert 0.74 < aspect.min() < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.02  # wide as often as tall
    assert 0.47 < area.mean() < 0.54  # uniform on [0.08, 1], less what did not fit


def test_uniforms_are_uniform():
    drawn = uniforms(3, 5, np.arange(20_000), 2)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.allclose(np.histogram(drawn, 10, (0, 1))[0] / drawn.size, 0.1, atol=0.005)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.02
