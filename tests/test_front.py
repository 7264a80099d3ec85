"""bigroc: the one command, which no file of the user's can shadow, and its recipes."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import bigroc.cli
from bigroc.recipes import recipes
from robust_models.runtime.config import RECIPES, shipped_recipes
from robust_models.runtime.shadowing import shadows
from tests.test_distributed import WORLD, free_ports
from tests.tiny import tiny_pixels

ROOT = Path(__file__).parents[1]
SCRIPT = ["-P", "-c", "import sys; from bigroc.cli import main; sys.exit(main())"]  # what pip writes as `bigroc`
MODULE = ["-m", "bigroc"]
TIMEOUT_S = 120


@pytest.fixture
def hostile(tmp_path):
    """A folder whose files have our packages' names: modules, a package, a mere folder of images."""
    folder = tmp_path / "work"
    for package in ("eval", "robust_models/runtime"):
        (folder / package).mkdir(parents=True)
    (folder / "refine").mkdir()
    stop = "raise SystemExit('shadowed')\n"
    for file in ("train.py", "eval/__init__.py", "robust_models/__init__.py", "robust_models/runtime/__init__.py"):
        (folder / file).write_text(stop)
    return folder


def start(words, folder, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize("how", [SCRIPT, MODULE], ids=["script", "module"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--config", "cifar_l2", "--dry-run"], "arch: resnet50"),
        (["refine", "--ckpt", "cifar10-l2-small", "--input", "b", "--out", "c", "--eps", "1", "--dry-run"], "eps: 1"),
        (["models", "list"], "cifar10-l2-small"),
    ],
)
def test_nothing_in_the_current_folder_shadows_the_command(hostile, how, arguments, expected):
    ended = start([*how, *arguments], hostile)
    assert ended.returncode == 0, ended.stderr
    assert expected in ended.stdout


def test_nor_does_a_python_path_of_the_current_folder(hostile):
    path = os.pathsep.join([".", str(hostile), str(ROOT)])
    ended = start([*SCRIPT, "eval", "robust", "--help"], hostile, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr
    assert "bigroc eval robust" in ended.stdout


def test_the_script_is_installed_and_its_old_names_are_aliases():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["bigroc"] == "bigroc.cli:main"
    assert {"bigroc-train", "bigroc-refine", "bigroc-eval"} < set(scripts)


def test_ranks_start_the_command_from_a_folder_that_would_shadow_it(hostile, checkpoint):
    np.savez(hostile / "in.npz", arr_0=tiny_pixels(10)[0])
    flags = ["--ckpt", checkpoint, "--input", "in.npz", "--out", "out.npz", "--eps", "0.5", "--steps", "1", "--json"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", WORLD, "--master-port", *free_ports(1)]
    ended = start([*torchrun, *MODULE, "refine", *flags], hostile)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["n"] == 10
    assert (hostile / "out.npz").exists()


@pytest.mark.parametrize("file", ["refine.py", "train.py", "eval/__init__.py"])
def test_python_m_says_what_shadows_it(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    ended = start(["-m", "robust_models", "--help"], tmp_path)
    assert ended.returncode == 0
    assert ended.stderr.count("\n") == 1
    assert f"{tmp_path / file.split('/')[0]} hides a package" in ended.stderr
    assert "`bigroc`" in ended.stderr
    assert not start(["-m", "robust_models", "--help"], tmp_path, RANK="1").stderr


def test_python_m_has_nothing_to_say_where_nothing_shadows_it(tmp_path):
    assert shadows() == []
    (tmp_path / "training.py").touch()
    (tmp_path / "eval").mkdir()  # a package wins over a mere folder, of images say
    assert not start(["-m", "robust_models", "--help"], tmp_path).stderr


@pytest.mark.parametrize("arguments", ["--version", "--help", "recipes", "recipes cifar_l2"])
def test_what_needs_no_network_does_not_import_torch(arguments, tmp_path):
    ended = start(["-X", "importtime", "-m", "bigroc", *arguments.split()], tmp_path)
    assert ended.returncode == 0
    modules = {line.split("|")[-1].strip() for line in ended.stderr.splitlines()}
    assert "bigroc.cli" in modules
    assert not modules & {"torch", "numpy", "PIL", "scipy"}


def test_version_and_revision(capsys):
    with pytest.raises(SystemExit) as ended:
        bigroc.cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("bigroc ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian: no such command; did you mean train?"),
        (["recipe"], "recipe: no such command; did you mean recipes?"),
        (["eval", "qualty"], "qualty: no such measurement; did you mean quality?"),
        (["models", "inspekt"], "inspekt: no such command; did you mean inspect?"),
        (["recipes", "cifar_l2_smal"], "name: no file cifar_l2_smal; did you mean cifar_l2_small.yaml?"),
        (["recipes", "--jsn"], "--jsn: no such flag; did you mean --json?"),
        (["nothing-like-it"], "there are refine, train, eval"),
        ([], "required: COMMAND"),
    ],
)
def test_near_misses_end_in_one_line(arguments, message, capsys):
    assert bigroc.cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", bigroc.cli.COMMANDS)
def test_every_command_is_there(name, capsys):
    with pytest.raises(SystemExit) as ended:
        bigroc.cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: bigroc {name}" in capsys.readouterr().out


def test_recipes_say_what_they_are_cost_and_score(capsys):
    assert bigroc.cli.main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recipes"]
    assert sorted(row["name"] for row in rows) == [path.stem for path in shipped_recipes()]
    for row in rows:
        assert all(row[field] for field in ("about", "cost", "score")), row["name"]
        assert row["command"] in bigroc.cli.COMMANDS
    assert bigroc.cli.main(["recipes"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for recipe in recipes():
        assert f"{recipe.name} (bigroc {recipe.command})" in words


@pytest.mark.parametrize("name", ["cifar_l2", "bigroc_vae.yaml", "ablation_eps"])
def test_a_recipe_named_is_printed_to_be_changed(name, capsys):
    assert bigroc.cli.main(["recipes", name]) == 0
    assert capsys.readouterr().out == (RECIPES / f"{name.removesuffix('.yaml')}.yaml").read_text()


def test_a_recipe_score_takes_all_of_its_lines():
    score = {recipe.name: recipe.score for recipe in recipes()}
    assert "IS 8.33 -> 8.78" in score["bigroc_cgan_pd"]
    assert "[-1,1]" not in score["bigroc_vae"]  # that is a note
    assert "The full weight" not in score["cifar_energy_small"]  # that is a comment between the fields
    assert score["cifar_standard"].endswith("PGD-20.")
