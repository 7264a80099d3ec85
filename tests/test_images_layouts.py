"""Arrays as people save them: grey, RGBA, channels first, other names, floats beyond [0,1]; and headers that lie."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_models import UserError, load_dataset, open_images, write_images
from robust_models.labels import fit_labels
from tests.test_images_tar import encoded, write_tar
from tests.tiny import tiny_pixels

KINDS = ["npz", "compressed npz", "npy", "pt", "old pt"]


def saved(kind: str, path: Path, array: np.ndarray) -> Path:
    path = path / f"x.{kind.rpartition(' ')[2]}"
    match kind:
        case "npz":
            np.savez(path, arr_0=array)
        case "compressed npz":
            np.savez_compressed(path, arr_0=array)
        case "npy":
            np.save(path, array)
        case _:
            torch.save(torch.from_numpy(array), path, _use_new_zipfile_serialization=kind == "pt")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((5, 28, 30), "[N,H,W]"), ((5, 28, 30, 1), "[N,H,W,1]"), ((5, 1, 28, 30), "[N,1,H,W]"),
        ((5, 28, 30, 4), "[N,H,W,4]"), ((5, 4, 28, 30), "[N,4,H,W]"), ((5, 3, 28, 30), "[N,3,H,W]"),
        ((1, 28, 30), "[N,H,W]"), ((5, 28, 30, 3), "[N,H,W,3]"),
    ],
)  # fmt: skip
def test_a_layout_is_understood_and_said(tmp_path, kind, shape, layout, capsys):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = open_images(saved(kind, tmp_path, array))
    assert (len(images), images.size) == (shape[0], (28, 30))
    assert images.about.startswith(f"{kind.rpartition(' ')[2]}, uint8 {layout}")
    rgb = array[:, None] if array.ndim == 3 else array if layout[3] in "134" else array.transpose(0, 3, 1, 2)
    rgb = np.repeat(rgb, 3, 1) if rgb.shape[1] == 1 else rgb[:, :3]
    assert np.array_equal(images.read(0, shape[0]).numpy(), rgb)
    usual = layout == "[N,H,W,3]" or (layout == "[N,3,H,W]" and "npz" not in kind)
    error = capsys.readouterr().err
    assert error.count("\n") == len(images.notes) == (0 if usual else 1)
    assert usual or f"understood as {layout}: {shape[0]} images of 30x28, " in error
    out = tmp_path / f"out{images.suffixes[0]}"
    with write_images(out, like=images) as add:
        add(images.read(0, shape[0]))
    assert np.array_equal(open_images(out).read(0, shape[0]).numpy(), rgb)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32), (32, 32), (32, 32, 1), (4, 32, 32)])
def test_one_image_is_not_taken_for_many(tmp_path, kind, shape):
    with pytest.raises(UserError, match=r"is uint8 \[.*\]; expected .*; if it is one image, save images\[None\]"):
        open_images(saved(kind, tmp_path, np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("kind", ["npz", "pt"])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"), ("x_train", "y_train"), ("data", "label"), ("X", "y"), ("image", "target"),
        ("train_images", "train_labels"), ("x_test", "y_test"), ("imgs", "targets"), ("samples", None),
    ],
)  # fmt: skip
def test_other_names_are_understood_and_said(tmp_path, kind, images, labels, capsys):
    pixels, y = tiny_pixels(6)
    arrays = {"extra": np.zeros(3), images: pixels, **({labels: y} if labels else {})}
    if kind == "npz":
        np.savez(tmp_path / "x.npz", **arrays)
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "x.pt")
    found = open_images(tmp_path / f"x.{kind}")
    assert np.array_equal(found.read(0, 6).numpy(), pixels.transpose(0, 3, 1, 2))
    assert found.labels is None if labels is None else found.labels is not None and found.labels.tolist() == y.tolist()
    if (kind, images) == ("pt", "images"):
        assert found.notes == ()
    else:
        assert f"{images} taken as the images, {labels or 'nothing'} as the labels; not read: extra" in found.notes[0]
        assert capsys.readouterr().err == f"{found.notes[0]}\n"


@pytest.mark.parametrize("names", ["{}_x", "x_{}", "{}_images", "data_{}"])
def test_of_the_parts_of_a_set_the_one_asked_for_is_taken(tmp_path, names):
    pixels, y = tiny_pixels(9)
    labels = names.replace("x", "y").replace("images", "labels").replace("data", "labels")
    arrays = {names.format("train"): pixels[:6], labels.format("train"): y[:6]}
    arrays |= {names.format("test"): pixels[6:], labels.format("test"): y[6:, None]}
    np.savez(tmp_path / "x.npz", **arrays)
    for split, part in (("train", slice(0, 6)), ("test", slice(6, 9))):
        data = load_dataset(str(tmp_path / "x.npz"), split)
        assert sorted(data.y.tolist()) == sorted(y[part].tolist())
        assert len(data) == len(y[part])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [1.0000001, -1e-7, 1.000009, -0.0])
def test_what_rounding_left_outside_is_clipped(tmp_path, kind, dtype, value):
    array = np.full((3, 4, 5, 3), 0.5, dtype)
    array[1, 2, 3, 1] = value
    images = open_images(saved(kind, tmp_path, array))
    x = images.read(0, 3)
    assert x[1, 1, 2, 3] == np.clip(np.float32(value), 0, 1)
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.parametrize("kind", ["npz", "npy", "pt"])
@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [
        (0, 255, r"store x / 255$"), (0, 254.9, r"store x / 255$"), (0, 65535, r"store x / 65535$"),
        (-1, 1, r"store \(x \+ 1\) / 2$"), (-0.9, 0.99, r"store \(x \+ 1\) / 2$"),
        (0, 1.02, r"clip them: numpy.clip\(x, 0, 1\)$"),
        (-0.01, 1.03, r"clip them: numpy"), (-1e-4, 1, r"clip them: nu"),
        (-128, 127, r"store \(x \+ 128\) / 255$"), (-2.1, 2.6, r"they look normalized: store x \* std \+ mean"),
        (-300, 9, r"rescale or clip them$"),
    ],
)  # fmt: skip
def test_the_advice_is_about_the_whole_range(tmp_path, kind, low, high, advice):
    array = np.full((4, 4, 5, 3), 0.5, np.float32)
    array[0, 0, 0, 0], array[3, 3, 4, 2] = low, high
    with pytest.raises(UserError, match=advice):
        open_images(saved(kind, tmp_path, array))


def npy_bytes(header: str, body: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


HEADERS = {
    "overflowing": "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 2, 2, 3)}",
    "overflowing product": "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 2, 3)}",
    "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 2, 3)}",
    "two negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -2, 2, 3)}",
    "of booleans": "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 2, 2, 3)}",
    "of floats": "{'descr': '|u1', 'fortran_order': False, 'shape': (1.5, 2, 2, 3)}",
    "huge digits": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 4000 + ", 2, 2, 3)}",
    "deep": "{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + "}",
    "no type": "{'descr': 'nonsense', 'fortran_order': False, 'shape': (1, 2, 2, 3)}",
    "no dict": "1",
    "missing bytes": "{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 9, 3)}",
    "large pixels": "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 90000, 90000, 3)}",
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("kind", ["npy", "npz", "npz labels"])
def test_a_header_that_lies_is_one_line(tmp_path, kind, header):
    lie = npy_bytes(HEADERS[header], bytes(12))
    path = tmp_path / f"x.{kind[:3]}"
    if kind == "npy":
        path.write_bytes(lie)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_1.npy" if "labels" in kind else "arr_0.npy", lie)
            if "labels" in kind:
                buffer = io.BytesIO()
                np.save(buffer, np.zeros((1, 2, 2, 3), np.uint8))
                archive.writestr("arr_0.npy", buffer.getvalue())
    with pytest.raises(UserError) as failure:
        open_images(path)
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 1000


@pytest.mark.parametrize("key", ["arr_1", "class_names", "labels"])
def test_an_array_that_inflates_to_gigabytes_is_refused_by_its_header(tmp_path, key, monkeypatch):
    monkeypatch.setenv("BIGROC_MAX_BYTES", "1000000")
    np.savez_compressed(
        tmp_path / "x.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), **{key: np.zeros(999_999, np.int64)}
    )
    message = rf"{key} is int64 \[999999\], 7,999,992 bytes; at most 1,000,000 are read at once: set BIGROC_MAX_BYTES="
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "x.npz")
    torch.save({"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(999_999).long()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"labels is int64 \[999999\], 7,999,992 bytes; at most 1,000,000 are read"):
        open_images(tmp_path / "x.pt")


PNG = encoded(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.cls", b"9" * 5000), ("a.cls", b"9" * 25), ("a.cls", b"-1"), ("a.cls", "٣".encode()), ("a.cls", b""),
        ("a.json", b"[" * 100_000), ("a.json", b'{"label": ' + b"9" * 5000 + b"}"), ("a.json", b"\xff\xfe"),
    ],
)  # fmt: skip
def test_labels_of_nonsense_in_a_tar_are_one_line(tmp_path, name, content):
    with pytest.raises(UserError, match=rf"x.tar: {name} (holds|is not JSON)") as failure:
        open_images(write_tar(tmp_path / "x.tar", [("a.png", PNG), (name, content)]))
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 500


def test_a_label_beyond_64_bits_is_none(tmp_path):
    content = json.dumps({"label": 10**30}).encode()
    assert open_images(write_tar(tmp_path / "x.tar", [("a.png", PNG), ("a.json", content)])).labels is None


@pytest.mark.parametrize(
    "trick", ["pax size", "negative size", "sparse map", "sparse file", "beyond the end", "pax text"]
)
def test_a_tars_tricks_with_sizes_are_one_line(tmp_path, trick):
    info = tarfile.TarInfo("a.png")
    info.size = len(PNG)
    headers = {
        "pax size": {"size": "9" * 30},
        "pax text": {"size": "many"},
        "sparse map": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 25},
        "sparse file": {"GNU.sparse.map": "0,9,99,x", "GNU.sparse.size": "100000000000"},
    }
    info.pax_headers = headers.get(trick, {})
    content = bytearray(info.tobuf(tarfile.PAX_FORMAT) + PNG + bytes(-len(PNG) % 512) + bytes(1024))
    if trick in ("negative size", "beyond the end"):
        size = b"\xff" * 11 + b"\0" if trick == "negative size" else b"77777777777\0"
        content[124:136] = size
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar: ") as failure:
        open_images(tmp_path / "x.tar")
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(
    "metadata",
    [b"{", b"\xff\xfe", b"[" * 100_000, b'{"info": []}', b'{"info": {"features": [1]}}',
     b'{"info": {"features": null}}',
     b'{"info": {"features": {"image": 1, "label": {"names": 7}}}}',
     b'{"info": {"features": {"label": {"names": "ab"}}}}'],
)  # fmt: skip
def test_parquet_metadata_of_nonsense_is_not_needed(tmp_path, metadata):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"image": pa.array([PNG, PNG]), "label": pa.array([0, 1])})
    parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "x.parquet")
    images = open_images(tmp_path / "x.parquet")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    assert images.class_names is None


def test_a_parquet_that_inflates_far_beyond_its_size_is_refused(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setenv("BIGROC_MAX_BYTES", "1000000")
    bomb = pa.table({"image": pa.array([bytes(2_000_000), PNG]), "label": pa.array([0, 1])})
    parquet.write_table(bomb, tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"a row group of 2 rows, .* bytes; at most 1,000,000 are read at once"):
        open_images(tmp_path / "x.parquet")


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0], [5, 0]])
def test_labels_beyond_the_names_of_the_set_are_refused(labels):
    with pytest.raises(UserError, match=r"x: labels run from .* to .*, but the set names 2 classes \(0 to 1\)"):
        fit_labels(np.array(labels), ["a", "b"], ["b", "a", "c"], source="x")
