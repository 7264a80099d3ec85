"""--limit N: only N images are decoded, whatever holds the set and whatever is wrong with those behind."""

import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigroc.cli import main as bigroc
from robust_models import UserError, load_dataset, open_images
from robust_models.datasets import open_dataset, stores
from robust_models.images import encoded, folder, open_image_groups
from tests.tiny import CLASSES, tiny_pixels

N, BROKEN = 12, 9  # images, and the one that cannot be decoded
PIXELS, LABELS = tiny_pixels(N)
FLOATS = (PIXELS / 255).astype(np.float32)
BROKEN_FLOATS = np.where(np.arange(N)[:, None, None, None] == BROKEN, np.float32(np.nan), FLOATS)


def png(i: int, *, broken: bool) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(stream, "PNG")
    return stream.getvalue()[:60] if broken else stream.getvalue()


def files(name_of: Callable[[int], str]) -> Callable[[Path, bool], Path]:
    def make(root: Path, is_broken: bool) -> Path:
        for i in range(N):
            file = root / "set" / name_of(i)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(i, broken=is_broken and i == BROKEN))
        return root / "set"

    return make


def tar(root: Path, is_broken: bool) -> Path:
    with tarfile.open(root / "set.tar", "w") as archive:
        for i in range(N):
            for suffix, data in (("png", png(i, broken=is_broken and i == BROKEN)), ("cls", str(LABELS[i]).encode())):
                info = tarfile.TarInfo(f"{i:02d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return root / "set.tar"


def parquet(root: Path, is_broken: bool) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file_format

    rows = [{"bytes": png(i, broken=is_broken and i == BROKEN), "path": None} for i in range(N)]
    table = pyarrow.table({"image": rows, "label": LABELS.tolist()})
    file_format.write_table(table, root / "set.parquet", row_group_size=5)
    return root / "set.parquet"


def npz(root: Path, is_broken: bool, save=np.savez) -> Path:
    save(root / "set.npz", arr_0=BROKEN_FLOATS if is_broken else FLOATS, arr_1=LABELS)
    return root / "set.npz"


def npy(root: Path, is_broken: bool) -> Path:
    np.save(root / "set.npy", BROKEN_FLOATS if is_broken else FLOATS)
    return root / "set.npy"


def pt(root: Path, is_broken: bool) -> Path:
    x = torch.from_numpy(BROKEN_FLOATS if is_broken else FLOATS)
    torch.save({"images": x.permute(0, 3, 1, 2).contiguous(), "labels": torch.from_numpy(LABELS)}, root / "set.pt")
    return root / "set.pt"


FAMILY = {
    "folder": files(lambda i: f"{i:02d}.png"),
    "folder of classes": files(lambda i: f"{CLASSES[LABELS[i]]}/{i:02d}.png"),
    "nested folders": files(lambda i: f"{CLASSES[LABELS[i]]}/deeper/{i:02d}.png"),
    "tar": tar,
    "parquet": parquet,
    "npz": npz,
    "compressed npz": lambda root, is_broken: npz(root, is_broken, np.savez_compressed),
    "npy": npy,
    "pt": pt,
}
ENCODED = ("folder", "folder of classes", "nested folders", "tar", "parquet")
LABELLED = [kind for kind in FAMILY if kind not in ("folder", "npy")]


@pytest.fixture
def decoded(monkeypatch) -> set[bytes]:
    """The encoded images that were decoded."""
    seen: set[bytes] = set()
    for module in (encoded, stores, folder):
        for function in ("decode", "decode_alpha"):
            if before := getattr(module, function, None):
                monkeypatch.setattr(module, function, partial(noting, seen, before))
    return seen


def noting(seen: set[bytes], decode: Callable, data: bytes, name: str):
    seen.add(data)
    return decode(data, name)


@pytest.mark.parametrize("limit", [1, 4, N, N + 1])
@pytest.mark.parametrize("kind", FAMILY)
def test_the_first_images_are_those_of_the_whole_set_and_no_other_is_decoded(tmp_path, decoded, kind, limit):
    path = FAMILY[kind](tmp_path, False)
    whole = open_images(path)
    decoded.clear()
    some = open_image_groups(path, limit=limit)
    images = some.one_set()
    assert (len(some), some.total) == (min(limit, N), N)
    assert list(images.names) == list(whole.names)[:limit]
    assert torch.equal(images.read(0, len(images)), whole.read(0, len(images)))
    assert whole.labels is None or images.labels.tolist() == whole.labels[:limit].tolist()
    assert images.class_names == whole.class_names
    assert len(decoded) == (min(limit, N) if kind in ENCODED else 0)


@pytest.mark.parametrize("limit", [1, 5, N])
@pytest.mark.parametrize("kind", LABELLED)
def test_labelled_data_are_the_same_with_and_without_a_limit(tmp_path, decoded, kind, limit):
    path = FAMILY[kind](tmp_path, False)
    whole = load_dataset(str(path), "test")
    decoded.clear()
    some = open_dataset(str(path), "test", limit=limit)
    held = some.in_memory()
    assert torch.equal(held.x_u8, whole.x_u8[:limit])
    assert torch.equal(held.y, whole.y[:limit])
    assert (held.class_names, held.total, len(held)) == (whole.class_names, N, limit)
    assert len(decoded) == (limit if kind in ENCODED else 0)


@pytest.mark.parametrize("kind", FAMILY)
def test_what_is_broken_behind_the_limit_is_not_met(tmp_path, kind):
    path = FAMILY[kind](tmp_path, True)
    with pytest.raises(UserError):
        open_images(path)
    assert len(open_images(path, limit=3)) == 3


@pytest.mark.parametrize("kind", ["folder", "folder of classes", "tar", "parquet"])
def test_with_skip_the_next_image_comes_in_for_a_broken_one(tmp_path, kind):
    path = FAMILY[kind](tmp_path, True)
    whole = open_images(path, on_error="skip")
    images = open_images(path, on_error="skip", limit=N - 1)
    assert len(whole) == len(images) == N - 1
    assert len(images.skipped) == 1
    assert torch.equal(images.read(0, N - 1), whole.read(0, N - 1))


@pytest.mark.parametrize("kind", FAMILY)
def test_refine_takes_the_first_images_and_comes_to_the_same_ones(tmp_path, checkpoint, decoded, capsys, kind):
    path = FAMILY[kind](tmp_path, False)
    words = ["refine", "--ckpt", checkpoint, "--input", path, "--eps", "1", "--steps", "2", "--targets", "class:0"]
    out = [tmp_path / f"{name}{path.suffix}" for name in ("some", "all")]
    words = [str(word) for word in words]
    decoded.clear()
    assert bigroc([*words, "--limit", "5", "--out", str(out[0]), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n"], summary["limit"], summary["input_images"]) == (5, 5, N)
    assert len(decoded) == (5 if kind in ENCODED else 0)
    assert bigroc([*words, "--out", str(out[1])]) == 0
    some, whole = map(open_images, out)
    assert len(some) == 5
    # Floats to rounding: a batch of 5 and one of 12 are summed in other orders where the CPU's library chooses so.
    torch.testing.assert_close(some.read(0, 5), whole.read(0, 5), rtol=0, atol=1e-6)
    rows = [Path(f"{place}.manifest.jsonl").read_text().splitlines() for place in out]
    assert rows[0] == rows[1][:5]


def refused(capsys, *words) -> str:
    assert bigroc([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_a_limit_of_refine_is_a_setting_of_the_run_like_any_other(tmp_path, checkpoint, capsys):
    words = ["refine", "--ckpt", checkpoint, "--input", npz(tmp_path, False), "--eps", "1", "--steps", "1"]
    words += ["--out", tmp_path / "y.npz"]
    assert "limit: input should be greater than or equal to 1; got 0" in refused(capsys, *words, "--limit", 0)
    assert "limit: " in refused(capsys, *words, "--limit", 0, "--dry-run")
    assert bigroc([str(word) for word in [*words, "--limit", 5]]) == 0
    assert "5 images (the first of 12) refined" in capsys.readouterr().out
    assert bigroc([str(word) for word in [*words, "--limit", 5]]) == 0
    assert "already done" in capsys.readouterr().out
    assert "made with another limit (5 there, 6 now)" in refused(capsys, *words, "--limit", 6)


@pytest.mark.parametrize("count", [5, N])
def test_labels_in_order_are_of_all_images_or_of_those_taken(tmp_path, checkpoint, count):
    (tmp_path / "labels.csv").write_text("\n".join(str(label) for label in LABELS[:count]))
    words = ["refine", "--ckpt", checkpoint, "--input", npy(tmp_path, False), "--eps", "1", "--steps", "1"]
    words += ["--limit", 5, "--targets", tmp_path / "labels.csv", "--out", tmp_path / "y.npy"]
    assert bigroc([str(word) for word in words]) == 0
    rows = map(json.loads, (tmp_path / "y.npy.manifest.jsonl").read_text().splitlines())
    assert [row["target"] for row in rows] == LABELS[:5].tolist()


@pytest.mark.parametrize("verb", ["eval robust --eps 0 --ckpt", "models inspect"])
def test_commands_on_labelled_data_decode_no_more(tmp_path, checkpoint, decoded, capsys, verb):
    path = FAMILY["folder of classes"](tmp_path, False)
    words = [*verb.split(), checkpoint, "--data", path, "--limit", 3, "--json"]
    status = bigroc([str(word) for word in words])
    assert status == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["n"] == 3
    assert len(decoded) == 3
