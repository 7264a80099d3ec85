"""The house rules: imports point down and never in a circle, packages are listed, and a batch's path is short."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny_pixels

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "robust_models": {"robust_models"},
    "train": {"train", "robust_models"},
    "refine": {"refine", "robust_models"},
    "eval": {"eval", "train", "refine", "robust_models"},
    "bigroc": {"bigroc", "eval", "train", "refine", "robust_models"},
}
# The rooms of a package, the highest first: each may import those after it. Files beside the rooms are not ordered here
# (no circle among files is what holds for them).
FLOORS = {
    "robust_models": ("features", "checkpoints", "architectures", "datasets", "images", "metrics", "runtime"),
    "train": ("loaders",),
    "refine": ("studio", "synthesis", "generators"),
    "eval": ("leaderboard", "study", "survey", "quality", "gradients", "certify", "robust"),
}
SEALED = "robust_models.checkpoints.torch_format"  # its one door is its __init__
ONE_IN_EACH_ROOM = {
    "__init__",
    "__main__",
    "cli",
    "config",
    "run",
    "summary",
}  # names that the room's own name completes
SHORT = 40  # lines
MOST_SHORT_FILES = 20


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for package in MAY_IMPORT for file in files_of(package)}


def imported(file: Path) -> Iterator[str]:
    """Names of our modules that the file imports anywhere, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MAY_IMPORT)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if (node.module or "").split(".")[0] in MAY_IMPORT:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else str(node.module)


IMPORTS = {name: set(imported(file)) - {name} for name, file in MODULES.items()}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_points_up_or_sideways(package):
    assert files_of(package)
    for name in filter(lambda name: name.split(".")[0] == package, MODULES):
        upward = {target for target in IMPORTS[name] if target.split(".")[0] not in MAY_IMPORT[package]}
        assert not upward, f"{name} imports {upward}"


def test_no_circle_among_files():
    TopologicalSorter(IMPORTS).prepare()  # CycleError names the circle


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_of_a_package_import_only_those_below(package):
    floors = FLOORS[package]
    rooms = {path.name for path in (ROOT / package).iterdir() if any(path.glob("*.py"))}
    assert rooms - {"pretrained"} == set(floors)
    for name, targets in IMPORTS.items():
        if name.split(".")[0] != package or (room := room_in(name, floors)) is None:
            continue
        for target in targets:
            other = room_in(target, floors) if target.split(".")[0] == package else None
            assert other is None or floors.index(other) >= floors.index(room) or target.startswith(SEALED), (
                f"{name} imports {target}, which lies above"
            )


def room_in(module: str, floors: tuple[str, ...]) -> str | None:
    piece = (*module.split("."), "")[1]
    return piece if piece in floors else None


def test_the_sealed_room_has_one_door():
    for name, targets in IMPORTS.items():
        inner = {target for target in targets if target.startswith(f"{SEALED}.")}
        assert name.startswith(SEALED) or not inner, f"{name} imports {inner}; its door is {SEALED}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_file_names_tell_rooms_apart(package):
    names = Counter(file.stem for file in files_of(package) if file.stem not in ONE_IN_EACH_ROOM)
    folders = {path.name for path in (ROOT / package).rglob("*") if path.is_dir()}
    assert [name for name, count in names.items() if count > 1 or name in folders] == []


def test_few_files_are_short():
    short = [
        name
        for name, file in MODULES.items()
        if file.stem not in ("__init__", "__main__") and len(file.read_text().splitlines()) < SHORT
    ]
    assert len(short) < MOST_SHORT_FILES, short


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {name_of(file.parent / "__init__.py") for file in MODULES.values()}
    data_only = {"robust_models.recipes", "robust_models.pretrained"}
    assert set(settings["packages"]) == found | data_only


# Runs a command until its first gradient (a measurement: to its end), then prints the files of ours that ran.
FOLLOW = """
import importlib, os, sys
import torch

def ran_until_now(*_, **__):
    sys.setprofile(None)
    print("\\n" + "\\n".join(sorted(ran)), flush=True)
    os._exit(0)

def notice(frame, event, _):
    file = frame.f_code.co_filename
    if event == "call" and file.startswith(root) and frame.f_code.co_name != "<module>" and os.sep + "." not in file:
        ran.add(os.path.relpath(file, root))

root, ran = sys.argv[1], set()
torch.autograd.grad = torch.Tensor.backward = ran_until_now
main = importlib.import_module(sys.argv[2]).main
for module in ("refine.pipeline", "train.run", "eval.quality.run"):
    importlib.import_module(module)
sys.setprofile(notice)
main(sys.argv[3:])
ran_until_now()
"""
PRETRAINED = "robust_models/pretrained"
PATHS = {  # the command, and how many of our files it may run through
    "refine": (f"refine.cli --ckpt cifar10-l2-small --input {PRETRAINED}/vae-cifar10.npz --out OUT.npz --eps 3", 30),
    "train": (
        "train.cli --config cifar_l2_small.yaml --data.path DATA.npz --data.validation 8 --batch_size 16 --out OUT",
        34,
    ),
    "quality": (
        f"eval.cli quality --images DATA.npz --reference {PRETRAINED}/cifar10-train-statistics.npz --cache none "
        "--features classifier:cifar10-standard-small",
        28,
    ),
}


@pytest.mark.parametrize("verb", PATHS)
def test_the_path_of_a_batch_is_short(verb, tmp_path):
    words, most = PATHS[verb]
    pixels, labels = tiny_pixels(64)
    np.savez(tmp_path / "DATA.npz", arr_0=np.repeat(np.repeat(pixels, 2, 1), 2, 2), arr_1=labels)
    command = [
        word.replace("OUT", f"{tmp_path}/out").replace("DATA", f"{tmp_path}/DATA")
        if word[:3] in ("OUT", "DAT")
        else word
        for word in words.split()
    ]
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, str(ROOT), *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    ours = [line for line in done.stdout.split("\n") if line.endswith(".py")]
    by_package = defaultdict(list)
    for file in ours:
        by_package[file.split("/")[0]].append(file)
    assert len(by_package[verb if verb in by_package else "eval"]) > 1, done.stderr  # it ran at all
    assert len(ours) <= most, f"{len(ours)} files: {ours}"
