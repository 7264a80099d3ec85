"""PyTorch's formats are read behind one door: nobody outside imports the reader's inner modules."""

import ast
from pathlib import Path

import pytest

import robust_models.checkpoints.torch_format as door

ROOT = Path(__file__).parent.parent
ROOM = "robust_models.checkpoints.torch_format"
FOLDER = ROOT / Path(*ROOM.split("."))


def inner_imports(source: str) -> set[str]:
    """The modules below the door that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{ROOM}.{file.stem}" for file in FOLDER.glob("*.py")}
            names |= {node.module, *({f"{node.module}.{alias.name}" for alias in node.names} & inner)}
    return {name for name in names if name.startswith(f"{ROOM}.")}


@pytest.mark.parametrize(
    "line",
    [
        f"from {ROOM}.unpickle import read_pickle",
        f"import {ROOM}.tensors as tensors",
        f"from {ROOM} import zip_archive",
    ],
)
def test_an_import_past_the_door_is_seen(line):
    assert inner_imports(f"def late():\n    {line}\n")


@pytest.mark.parametrize("package", ["robust_models", "train", "refine", "eval", "benchmarks"])
def test_nobody_outside_imports_past_the_door(package):
    outside = [file for file in (ROOT / package).rglob("*.py") if FOLDER not in file.parents]
    assert outside
    for file in outside:
        assert not inner_imports(file.read_text()), f"{file} reads PyTorch's formats past {ROOM}"


def test_the_door_has_one_function():
    functions = [name for name in door.__all__ if not isinstance(getattr(door, name), type)]
    assert functions == ["read_torch_file"]
    assert len(list(FOLDER.glob("*.py"))) == 10  # nine rooms and the door
