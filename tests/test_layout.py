"""The house rules: imports point down only, and every package is listed."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "robust_models": {"robust_models"},
    "train": {"train", "robust_models"},
    "refine": {"refine", "robust_models"},
    "eval": {"eval", "train", "refine", "robust_models"},
    "bigroc": {"bigroc", "eval", "train", "refine", "robust_models"},
}


def imported_rooms(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules} & set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_import_points_up_or_sideways(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        upward = imported_rooms(file) - MAY_IMPORT[room]
        assert not upward, f"{file} imports {upward}"


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts) for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")
    }
    data_only = {"robust_models.recipes", "robust_models.pretrained"}
    assert set(settings["packages"]) == found | data_only
