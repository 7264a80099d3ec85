"""A built distribution, installed where there are no sources, works from any folder."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from robust_models.runtime.version import git_revision
from tests.tiny import tiny_pixels

ROOT = Path(__file__).parent.parent
PACKAGES = ("bigroc", "robust_models", "train", "refine", "eval")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """dist/ of this checkout: the wheel is made from the sdist, as `make dist` does."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The wheel's content in an empty folder; what it depends on stays where it is."""
    place = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", place, wheel], check=True, capture_output=True)
    return place


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python on the installed packages, in a folder where no sources are."""

    def run(*words: object) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_packages_run_from_the_wheel_and_know_version_and_revision(run, installed):
    found = run(
        "-c",
        "import robust_models, train, refine, eval\n"
        "from robust_models.runtime.version import git_revision, version\n"
        "print(robust_models.__file__, version(), git_revision())",
    )
    place, version, revision = found.split()
    assert Path(place).is_relative_to(installed)
    assert version == "0.1.0"
    assert revision == git_revision()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(installed, package):
    assert (installed / package / "py.typed").is_file()


def test_nothing_of_the_packages_is_left_behind(installed):
    """Every file that git knows below a package is in the wheel, and every recipe."""
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES, "configs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    inside = [name.replace("configs/", "robust_models/recipes/") for name in listed.stdout.split()]
    assert len(inside) > 200
    assert [name for name in inside if not (installed / name).is_file()] == []


def test_the_sdist_holds_what_a_reader_wants(built):
    (archive,) = built.glob("*.tar.gz")
    names = {name.split("/", 1)[-1] for name in tarfile.open(archive).getnames()}
    wanted = {"README.md", "LICENSE", "docs/synthesis.md", "configs/cifar_l2.yaml", "robust_models/_revision.txt"}
    assert wanted <= names


def test_refine_train_and_eval_from_another_folder(run, tmp_path):
    """Embedded weights, a shipped recipe and bundled statistics are found by name or beside the code."""
    pixels, labels = tiny_pixels(24)
    np.savez(tmp_path / "in.npz", arr_0=pixels, arr_1=labels)
    places = ["--input", "in.npz", "--out", "refined.npz"]
    refined = json.loads(run("-m", "refine", "--ckpt", "cifar10-l2-small", *places, "--eps", 1, "--json"))
    assert refined["n"] == 24
    shrunk = ["--epochs", 1, "--arch", "preact_resnet10_w16", "--batch_size", 8, "--compile", "false"]
    data = ["--data.path", "in.npz", "--data.class_names", "[]", "--data.validation", 8, "--validate.steps", 1]
    trained = json.loads(run("-m", "train", "--config", "cifar_l2_small", *data, *shrunk, "--json"))
    assert trained["steps"] == 2
    checkpoint = Path(trained["checkpoint"])
    assert not checkpoint.is_absolute()
    assert (tmp_path / checkpoint).is_file()
    sets = ["--images", "refined.npz", "--reference", "in.npz", "--features", f"classifier:{checkpoint}"]
    measured = json.loads(run("-m", "eval", "quality", *sets, "--cache", "none", "--json"))
    assert (measured["n_images"], measured["n_reference"]) == (24, 24)


def test_a_study_writes_its_report_from_the_wheels_template(run, tmp_path):
    sets = ["--images", "[{name: VAE, path: 'bundled:vae-cifar10', limit: 8}]", "--reference_images", "null"]
    shrunk = ["--data", "null", "--robust.eps", "{}", "--eps", 1, "--steps", 1, "--out", "study"]
    run("-m", "eval", "study", "--config", "ablation_eps", *sets, *shrunk)
    assert "<html" in (tmp_path / "study" / "report.html").read_text()
