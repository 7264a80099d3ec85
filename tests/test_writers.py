"""What a program calls to write a file or a folder: it never deletes what this project did not write."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_models import UserError, open_images, save, write_images
from robust_models.datasets.beton import write_beton
from robust_models.grids import save_rows, save_trajectory
from robust_models.images import open_image_groups, write_image_groups
from robust_models.images.new_set import NewSet, write_new_set
from robust_models.metrics import FrechetStatistics, write_statistics
from tests.tiny import CLASSES, tiny_classifier, tiny_pixels

PIXELS, LABELS = tiny_pixels(4)
X_U8 = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous()


def like(out: Path) -> Path:
    """A set of the kind of `out`, which lies elsewhere."""
    place = out.parent / "source" / out.name
    place.parent.mkdir(exist_ok=True)
    if out.suffix == ".npz":
        np.savez(place, arr_0=PIXELS)
    elif out.suffix == ".npy":
        np.save(place, PIXELS)
    elif out.suffix == ".pt":
        torch.save(X_U8, place)
    else:
        for i in range(4):
            (place / "c").mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS[i]).save(place / "c" / f"{i}.png")
    return place


def images(out: Path) -> None:
    source = open_images(like(out))
    with write_images(out, like=source) as add:
        add(X_U8)


def groups(out: Path) -> None:
    Image.new("RGB", (9, 5)).save(like(out) / "c" / "other.png")
    source = open_image_groups(out.parent / "source" / out.name)
    with write_image_groups(out, like=source) as adds:
        for one, add in zip(source.sets, adds, strict=True):
            add(one.read(0, len(one)))


def new_set(out: Path) -> None:
    with write_new_set(out, NewSet(LABELS, CLASSES, [str(i) for i in range(4)], PIXELS.shape[1:3])) as add:
        add(X_U8)


def statistics(out: Path) -> None:
    found = FrechetStatistics(3)
    found.update(torch.rand(9, 3))
    write_statistics(out, found, features="f", protocol="p", sha256="0")


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "write_images, folder": ("out", images),
    "write_image_groups, folder": ("out", groups),
    "write_new_set, folder": ("out", new_set),
    "write_images, npz": ("out.npz", images),
    "write_images, npy": ("out.npy", images),
    "write_images, pt": ("out.pt", images),
    "write_new_set, npz": ("out.npz", new_set),
    "write_new_set, npy": ("out.npy", new_set),
    "write_new_set, pt": ("out.pt", new_set),
    "write_new_set, tar": ("out.tar", new_set),
    "write_statistics": ("out.npz", statistics),
    "save": ("out.safetensors", lambda out: save(tiny_classifier(), out)),
    "write_beton": ("out.beton", lambda out: write_beton(out, iter(PIXELS), LABELS, CLASSES)),
    "save_rows": ("out.png", lambda out: save_rows(out, [("a", X_U8)], ["x"] * 4)),
    "save_trajectory": ("out.gif", lambda out: save_trajectory(out, [X_U8, X_U8], ["x"] * 4)),
}
FOLDERS = [name for name in WRITERS if name.endswith("folder")]
FILES = [name for name in WRITERS if name not in FOLDERS]


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize("found", ["notes.txt", "c/9.png", ".hidden", "deep/deeper/weights.pt"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_anything_in_it_stays_as_it_is(tmp_path, name, found):
    place, write = WRITERS[name]
    (tmp_path / place / found).parent.mkdir(parents=True)
    (tmp_path / place / found).write_bytes(b"mine")
    before = contents(tmp_path / place)
    with pytest.raises(UserError, match=r"exists and is not empty \(.*\), and is not replaced; move it away"):
        write(tmp_path / place)
    assert contents(tmp_path / place) == before
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_folder_is_filled(tmp_path, name):
    place, write = WRITERS[name]
    (tmp_path / place).mkdir()
    write(tmp_path / place)
    assert len(open_image_groups(tmp_path / place)) >= 4


def test_files_that_come_into_the_folder_meanwhile_stay(tmp_path):
    source = open_images(like(tmp_path / "out"))
    with pytest.raises(OSError, match="not empty"), write_images(tmp_path / "out", like=source) as add:  # noqa: PT012
        add(X_U8)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_bytes(b"mine")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}


ARRAYS = io.BytesIO()
np.savez(ARRAYS, theta=np.ones(3))
OTHERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("mine, of many years"),
    "weights": lambda path: torch.save({"w": torch.ones(3)}, path),
    "photograph": lambda path: Image.new("RGB", (8, 8)).save(path, "PNG"),
    "arrays": lambda path: path.write_bytes(ARRAYS.getvalue()),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_stays_as_it_is(tmp_path, name, other):
    place, write = WRITERS[name]
    OTHERS[other](tmp_path / place)
    before = (tmp_path / place).read_bytes()
    with pytest.raises(UserError, match=r"and is not replaced; name another|no picture that this program made"):
        write(tmp_path / place)
    assert (tmp_path / place).read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_what_it_wrote_itself_is_written_anew(tmp_path, name):
    place, write = WRITERS[name]
    write(tmp_path / place)
    before = (tmp_path / place).stat().st_ino
    write(tmp_path / place)
    assert (tmp_path / place).stat().st_ino != before


@pytest.mark.parametrize("place", ["out", "out.npz", "out.npy", "out.pt"])
def test_a_set_is_not_written_over_its_source(tmp_path, place):
    source = open_images(like(tmp_path / place))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="overlaps the input"), write_images(source.path, like=source):
        pass
    assert contents(tmp_path) == before
