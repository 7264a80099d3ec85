"""What the studio saves: the command in it makes the same picture again, bit for bit, on every tab and at any step."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refine.cli import main
from refine.studio.config import StudioConfig
from refine.studio.server import StudioServer
from robust_models.runtime.files import sha256_of
from tests.studio import ASKED, MASK, SIDE, Frame, X, asked, packed, post, run, save_seeds, served
from tests.tiny import fill

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(checkpoint, tmp_path) -> StudioConfig:
    save_seeds(checkpoint.with_name("tiny.seeds.npz"))
    return StudioConfig(ckpt=str(checkpoint), out=tmp_path / "saved", port=0)


@pytest.fixture
def server(config) -> Iterator[StudioServer]:
    with served(config) as running:
        yield running


def saved(server: StudioServer, name: str, step: int, **changes):
    """Runs one of ASKED and saves what it was after `step` steps, as the page does: (answer, the frame)."""
    found = run(server, name, **changes)
    frame = next(frame for frame in found.frames if frame.step == step)
    values, parts = asked(name, **changes)
    if name != "explain":
        values["options"] = values["options"] | {name: found.json[name] for name in ("eps", "step_size")}
    values |= {"label": found.json["label"], "step": step}
    return post(server, "/save", with_result(values, parts, frame)), frame


def with_result(values, parts, frame: Frame) -> bytes:
    height, width, _ = frame.pixels.shape
    return packed(values | {"result_height": height, "result_width": width}, *parts, frame.pixels.tobytes())


def made_again(folder: Path) -> Path:
    """Runs the folder's command, in this process, and gives the picture that it wrote."""
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["command"][:3] == ["python", "-m", "refine"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(settings["command"][3:]) == 0
    finally:
        os.chdir(before)
    (made,) = folder.glob(settings["made_again"])
    return made


@pytest.mark.parametrize("step", [5, 2])
@pytest.mark.parametrize("name", ASKED)
def test_the_saved_command_makes_the_saved_picture(server, config, name, step, each_machine):
    """Of a run to its end, and of a frame from its middle; in the precision that was decided here."""
    step = 0 if name == "explain" else step
    found, frame = saved(server, name, step)
    assert found.status == 200, found.json
    folder = Path(found.json["folder"])
    result = (folder / "result.png").read_bytes()
    assert (np.asarray(Image.open(io.BytesIO(result))) == frame.pixels).all()
    assert made_again(folder).read_bytes() == result
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["step"] == step
    assert settings["checkpoint_sha256"] == sha256_of(Path(config.ckpt))
    assert settings["precision"] == server.precision.precision
    assert {"python", "torch", "numpy", "git_revision", "machine"} <= {*settings["environment"]}
    files = {"result.png", "settings.json", "command.sh"} | ({"input.png"} if name != "generate" else set())
    files |= {"mask.png"} if "paint" in name else set()
    assert files <= {path.name for path in folder.iterdir()}


def test_the_input_and_the_mask_are_those_of_the_page(server):
    found, _ = saved(server, "inpaint", 5)
    folder = Path(found.json["folder"])
    assert (np.asarray(Image.open(folder / "input.png")) == X).all()
    assert (np.asarray(Image.open(folder / "mask.png").convert("L")) == MASK).all()


def test_the_script_runs_by_itself(server, tmp_path, monkeypatch):
    """command.sh from another folder, by a shell, as a process of its own."""
    found, _ = saved(server, "translate", 3)
    folder = Path(found.json["folder"])
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(["sh", folder / "command.sh"], cwd="/", env=environment, check=True, capture_output=True)
    (made,) = folder.glob("again/*/input.png")
    assert made.read_bytes() == (folder / "result.png").read_bytes()
    assert shlex.split((folder / "command.sh").read_text().splitlines()[-1])[3:5] == ["--task", "translate"]


def test_the_readings_of_a_foreign_checkpoint_are_in_the_command(config, tmp_path):
    """What the studio was told about the file, the command is told as well; a list of classes by its whole path."""
    names = tmp_path / "names.txt"
    names.write_text("one, two\nnull\n-three\n")
    with served(StudioConfig(ckpt=config.ckpt, class_names=str(names), out=config.out, port=0)) as server:
        for label in range(3):
            found, _ = saved(server, "translate", 5, label=label)
            folder = Path(found.json["folder"])
            assert str(names.resolve()) in json.loads((folder / "settings.json").read_text())["command"]
            assert made_again(folder).read_bytes() == (folder / "result.png").read_bytes()


def test_pictures_saved_in_the_same_second_stand_beside_each_other(server, config):
    folders = {saved(server, "translate", 5)[0].json["folder"] for _ in range(4)}
    assert len(folders) == 4
    assert not list(config.out.glob(".*"))  # nothing half written


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 0}, "step: at step 0 nothing has been done yet"),
        ({"label": None}, "class: what is saved names its class"),
        ({"options": {"eps": 1.5, "steps": 5}}, "step_size: what is saved states it"),
        ({"step": -1}, "step: step, result_height and result_width are expected"),
        ({"step": "5"}, "step: step, result_height and result_width are expected"),
        ({"result_height": 4000}, "result: 16x4000 pixels"),
        ({"result_height": 17}, "image: "),
        ({"options": {"eps": 1.5, "step_size": 0.1, "ckpt": "x"}}, "ckpt: cannot be set"),
        ({"step": 501}, "steps: 501 is above 500"),
    ],
)
def test_what_cannot_be_saved_is_one_line(server, config, changes, reason):
    values, parts = asked("refine")
    values |= {"label": 1, "step": 5, "result_height": SIDE, "result_width": SIDE}
    values["options"] = {"eps": 1.5, "step_size": 0.4, "steps": 5}
    found = post(server, "/save", packed(values | changes, *parts, X.tobytes()))
    assert found.status == 400
    assert found.json["error"].startswith(reason)
    assert not config.out.exists()


def test_a_full_disk_is_one_line(checkpoint, tiny_disk):
    with served(StudioConfig(ckpt=str(checkpoint), out=tiny_disk / "saved", port=0)) as server:
        filler = fill(tiny_disk)
        found, _ = saved(server, "translate", 5)
        assert found.status == 400
        assert "saved" in found.json["error"]
        filler.unlink()
        assert saved(server, "translate", 5)[0].status == 200


def test_a_gif_shows_every_frame_that_is_sent(server):
    found = run(server, "translate")
    frames = [frame.pixels.tobytes() for frame in found.frames]
    values = {"height": SIDE, "width": SIDE, "steps": list(range(6)), "name": "airplane"}
    answer = post(server, "/gif", packed(values, *frames))
    assert answer.status == 200
    with Image.open(io.BytesIO(answer.raw)) as picture:
        assert (picture.format, picture.n_frames) == ("GIF", 6)


@pytest.mark.parametrize(
    "changes", [{"steps": []}, {"steps": [1]}, {"height": 0}, {"height": 600}, {"steps": "all"}, {"width": None}]
)
def test_gifs_that_are_none(server, changes):
    values = {"height": SIDE, "width": SIDE, "steps": [0, 1], "name": "x"} | changes
    found = post(server, "/gif", packed(values, X.tobytes(), X.tobytes()))
    assert found.status == 400
    assert found.json["error"].startswith("gif: ")
