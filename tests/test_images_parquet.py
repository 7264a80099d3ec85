"""Hugging Face datasets on disk: parquet in, parquet out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_models import UserError, open_images, write_images
from tests.test_images_tar import encoded
from tests.tiny import CLASSES, tiny_pixels

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}


def write_parquet(
    path: Path, pixels, labels=None, *, image="image", in_struct=True, features=None, rows_per_group=4, **more
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [image_bytes if isinstance(image_bytes, bytes | None) else encoded(image_bytes) for image_bytes in pixels]
    if in_struct:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {image: pa.array([{"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(data)], kind)}
    else:
        columns = {image: pa.array(data, pa.binary())}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table({**columns, **{name: pa.array(column) for name, column in more.items()}})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def refine(images, out: Path, batch_size: int = 4):
    """Every image made darker by one level."""
    with write_images(out, like=images, labels=images.labels) as add:
        for _, x in images.batches(batch_size):
            add(x - 1)
    return open_images(out)


def darkened(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()) - 1


def test_a_folder_of_files_stays_one_with_schema_and_columns(tmp_path):
    pixels, labels = tiny_pixels(13)
    pixels += 1
    ids = [f"id{i}" for i in range(13)]
    for name, part in (("data/train-00000-of-00002", slice(0, 9)), ("data/train-00001-of-00002", slice(9, 13))):
        write_parquet(tmp_path / "in" / f"{name}.parquet", pixels[part], labels[part], features=FEATURES, id=ids[part])
    images = open_images(tmp_path / "in")
    assert (len(images), images.size, images.class_names) == (13, (16, 16), CLASSES)
    assert images.about == "2 parquet files, column 'image', uint8"
    assert images.labels is not None
    assert images.labels.tolist() == labels.tolist()
    again = refine(images, tmp_path / "out")
    assert torch.equal(again.read(0, 13), darkened(pixels))
    assert again.class_names == CLASSES
    for file in (tmp_path / "in").rglob("*.parquet"):
        before, after = pq.read_table(file), pq.read_table(tmp_path / "out" / file.relative_to(tmp_path / "in"))
        assert after.schema.equals(before.schema, check_metadata=True)
        assert after.drop_columns("image").equals(before.drop_columns("image"))
        paths = [value["path"] for value in after["image"].to_pylist()]
        assert paths == [value["path"].replace(".jpg", ".png") for value in before["image"].to_pylist()]


@pytest.mark.parametrize("in_struct", [True, False])
def test_one_file_stays_one_in_any_order_of_reading(tmp_path, in_struct):
    pixels, _ = tiny_pixels(11)
    pixels += 1
    images = open_images(write_parquet(tmp_path / "a.parquet", pixels, image="img", in_struct=in_struct))
    assert images.labels is None
    for start, stop in [(8, 11), (2, 7), (7, 8), (0, 11), (10, 11)]:
        assert torch.equal(images.read(start, stop), darkened(pixels[start:stop]) + 1)
    assert torch.equal(refine(images, tmp_path / "b.parquet", 3).read(0, 11), darkened(pixels))
    assert pq.read_schema(tmp_path / "b.parquet").equals(pq.read_schema(tmp_path / "a.parquet"))


def test_alpha_is_kept(tmp_path):
    rgba = np.dstack([tiny_pixels(1)[0][0] + 1, np.full((16, 16), 7, np.uint8)])
    refine(open_images(write_parquet(tmp_path / "a.parquet", [rgba])), tmp_path / "b.parquet")
    (tmp_path / "x.png").write_bytes(pq.read_table(tmp_path / "b.parquet")["image"].to_pylist()[0]["bytes"])
    from PIL import Image

    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(np.asarray(image), np.dstack([rgba[..., :3] - 1, rgba[..., 3]]))


def test_a_corrupt_row_is_named_or_skipped(tmp_path):
    pixels, labels = tiny_pixels(6)
    rows = [encoded(image) for image in pixels]
    rows[2], rows[5] = rows[2][:50], None
    file = write_parquet(tmp_path / "a.parquet", rows, labels)
    with pytest.raises(UserError, match=r"a.parquet: 000002: cannot be decoded .* \(and 1 more\); mend or remove it"):
        open_images(file)
    images = open_images(file, on_error="skip")
    assert images.labels is not None
    assert images.labels.tolist() == labels[[0, 1, 3, 4]].tolist()
    assert "row 5 has no image bytes, perhaps a path only" in images.skipped[1]
    again = refine(images, tmp_path / "b.parquet", 3)
    assert torch.equal(again.read(0, 4), images.read(0, 4) - 1)
    assert pq.read_table(tmp_path / "b.parquet")["label"].to_pylist() == labels[[0, 1, 3, 4]].tolist()


def test_columns_by_their_features_and_names(tmp_path):
    pixels, labels = tiny_pixels(2)
    mask = [b"not an image"] * 2
    features = {"photo": {"_type": "Image"}, "fine_label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    fine = labels.astype(np.int32)
    file = write_parquet(tmp_path / "a.parquet", pixels, image="photo", features=features, mask=mask, fine_label=fine)
    images = open_images(file)
    assert images.class_names == ("a", "b", "c")
    assert images.labels is not None
    assert images.labels.tolist() == labels.tolist()


def test_other_tables_and_broken_files_are_told(tmp_path, monkeypatch):
    pixels, _ = tiny_pixels(2)
    two = write_parquet(tmp_path / "two.parquet", pixels, image="left", right=[b"x", b"y"])
    with pytest.raises(UserError, match=r"several columns of images \(columns: left struct<.*>, right binary\)"):
        open_images(two)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"no column of images \(columns: text string\); expected one, 'image'"):
        open_images(tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"empty.parquet: no rows"):
        open_images(write_parquet(tmp_path / "empty.parquet", []))
    with pytest.raises(UserError, match=r"gaps.parquet: 2 images but 1 labels in 'label'"):
        open_images(write_parquet(tmp_path / "gaps.parquet", pixels, [1, None]))
    (tmp_path / "cut.parquet").write_bytes(two.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cut.parquet: not a readable parquet file \(.*\); copy or make it anew"):
        open_images(tmp_path / "cut.parquet")
    write_parquet(tmp_path / "mixed" / "0.parquet", pixels)
    write_parquet(tmp_path / "mixed" / "1.parquet", pixels, in_struct=False)
    with pytest.raises(
        UserError, match=r"1.parquet: its column 'image' is not as in .*0.parquet; give the files of one"
    ):
        open_images(tmp_path / "mixed")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    with pytest.raises(UserError, match=r"Arrow files, as save_to_disk makes them; write parquet: dataset.to_parquet"):
        open_images(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r'parquet needs pyarrow \(.*\); pip install "bigroc\[parquet\]"'):
        open_images(two)
