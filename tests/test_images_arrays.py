"""npz, npy and pt: one array in a file."""

import zipfile

import numpy as np
import pytest
import torch

from robust_models import UserError, open_images, write_images

TYPES = ["uint8", "uint16", "float16", "float32", "float64"]


def stored_pixels(dtype: str, n: int = 7) -> np.ndarray:
    """[n,5,6,3]; floats are multiples of 1/256, which every float type holds."""
    levels = np.random.default_rng(0).integers(0, 256, (n, 5, 6, 3))
    return (levels if dtype.startswith("uint") else levels / 256).astype(dtype)


def copied(images, out, batch_size: int = 3):
    with write_images(out, like=images, labels=images.labels, class_names=images.class_names) as add:
        for _, x in images.batches(batch_size):
            add(x)
    return open_images(out)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("suffix", "channels_first"), [("npy", False), ("npy", True), ("pt", False), ("pt", True), ("npz", False)]
)
def test_type_layout_order_and_labels_stay(tmp_path, suffix, channels_first, dtype):
    pixels = stored_pixels(dtype)
    array = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if channels_first else pixels
    source, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    if suffix == "npy":
        np.save(source, array)
    elif suffix == "pt":
        torch.save({"images": torch.from_numpy(array), "labels": torch.arange(7), "class_names": ["a", "b"]}, source)
    else:
        np.savez(source, arr_0=array, arr_1=np.arange(7), class_names=["a", "b"])
    images = open_images(source)
    assert images.about == f"{suffix}, {dtype} {'[N,3,H,W]' if channels_first else '[N,H,W,3]'}"
    assert images.depth == (dtype if dtype.startswith("uint") else "float32")
    assert (len(images), images.size) == (7, (5, 6))
    assert images.names[-1] == "000006"
    assert list(images.names[4:]) == ["000004", "000005", "000006"]
    expected = pixels.transpose(0, 3, 1, 2).astype(images.depth)
    assert np.array_equal(images.read(2, 6).numpy(), expected[2:6])
    again = copied(images, out)
    assert again.about == images.about
    assert np.array_equal(again.read(0, 7).numpy(), expected)
    if suffix == "npy":
        assert np.load(out).dtype == array.dtype
        assert np.array_equal(np.load(out), array)
    else:
        assert again.labels is not None
        assert again.labels.tolist() == list(range(7))
        assert again.class_names == ("a", "b")


@pytest.mark.parametrize("dtype", TYPES)
def test_torch_itself_reads_what_is_written(tmp_path, dtype):
    x = torch.from_numpy(stored_pixels(dtype))
    torch.save({"images": x, "labels": torch.arange(7)}, tmp_path / "in.pt")
    copied(open_images(tmp_path / "in.pt"), tmp_path / "out.pt")
    for mapped in (False, True):
        written = torch.load(tmp_path / "out.pt", weights_only=True, mmap=mapped)
        assert written.keys() == {"images", "labels"}
        assert written["images"].dtype == x.dtype
        assert torch.equal(written["images"], x)
        assert torch.equal(written["labels"], torch.arange(7))
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None


def test_a_bare_tensor_stays_bare_and_equal_images_give_equal_bytes(tmp_path):
    x = torch.from_numpy(stored_pixels("uint8"))
    torch.save(x, tmp_path / "in.pt")
    images = open_images(tmp_path / "in.pt")
    copied(images, tmp_path / "a.pt", 2)
    copied(images, tmp_path / "b.pt", 7)
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True), x)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_tensors_are_read_as_they_lie(tmp_path):
    x = torch.from_numpy(stored_pixels("uint8")).permute(0, 3, 1, 2).contiguous()
    kinds = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "permuted": x.permute(0, 2, 3, 1),
        "part": torch.cat([x, x])[3:10],
    }
    for name, tensor in kinds.items():
        torch.save(tensor, tmp_path / f"{name}.pt")
        expected = tensor if tensor.shape[1] == 3 else tensor.permute(0, 3, 1, 2)
        assert torch.equal(open_images(tmp_path / f"{name}.pt").read(1, 5), expected[1:5]), name
    torch.save(x, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(open_images(tmp_path / "old.pt").read(1, 5), x[1:5])
    torch.save(x[::2], tmp_path / "gaps.pt")
    with pytest.raises(UserError, match=r"gaps.pt: the tensor is not in one piece; save images.contiguous\(\)"):
        open_images(tmp_path / "gaps.pt")


def test_a_compressed_npz_is_read_in_any_order(tmp_path):
    pixels = stored_pixels("uint8", 20)
    np.savez_compressed(tmp_path / "x.npz", arr_0=pixels, arr_1=np.arange(20))
    images = open_images(tmp_path / "x.npz")
    assert images.about == "npz, uint8 [N,H,W,3], compressed"
    for start, stop in [(5, 9), (9, 12), (15, 20), (0, 3), (2, 20)]:
        assert np.array_equal(images.read(start, stop).numpy(), pixels[start:stop].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"weights": torch.zeros(2, 3, 4, 4)},
            r"no tensor of images \(it holds a dict of weights\); expected a tensor, or a dict with",
        ),
        ([1, 2], r"no tensor of images \(it holds something else\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16), r"holds a tensor of BFloat16 numbers; save uint8, uint16, or"),
        (torch.zeros(2, 5, 4, 2), r"the tensor is float32 \[2, 5, 4, 2\]; expected"),
        (torch.zeros(3, 4, 4), r"the tensor is float32 \[3, 4, 4\]; expected \[N,H,W,3\] or \[N,3,H,W\] of uint8"),
        (
            {"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(3).long()},
            r"labels is int64 \[3\]; .* of 2 images",
        ),
        ({"images": torch.zeros(2, 3, 4, 4), "labels": [0]}, r"labels is int64 \[1\]; .* each of 2 images"),
    ],
)
def test_a_pt_of_another_kind_is_described(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "x.pt")


def test_broken_array_files_are_named(tmp_path):
    np.save(tmp_path / "cut.npy", stored_pixels("uint8"))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cut.npy: cut short: \d+ of \d+ bytes are there"):
        open_images(tmp_path / "cut.npy")
    (tmp_path / "junk.npy").write_text("hello")
    with pytest.raises(UserError, match=r"junk.npy: not a readable .npy"):
        open_images(tmp_path / "junk.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match="an array of pickled objects, which are never opened"):
        open_images(tmp_path / "objects.npy")
    torch.save(torch.zeros(2, 3, 4, 4), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cut.pt"):
        open_images(tmp_path / "cut.pt")


def test_a_pt_cannot_point_outside_its_storage(tmp_path):
    torch.save(torch.zeros(2, 3, 4, 4), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:-4] if name.endswith("data/0") else data)
    with pytest.raises(UserError, match=r"a tensor of shape \[2, 3, 4, 4\] is larger than its storage"):
        open_images(tmp_path / "x.pt")


def test_no_code_of_a_pt_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    torch.save({"images": torch.zeros(2, 3, 4, 4), "more": Evil()}, tmp_path / "x.pt")
    assert len(open_images(tmp_path / "x.pt")) == 2
    assert not (tmp_path / "pwned").exists()
