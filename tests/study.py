"""A study of tiny networks and images, for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from eval.study.cell import Refinement, Scorer
from eval.study.cli import STUDY
from eval.study.config import StudyConfig
from eval.study.results import Results
from eval.study.run import Part, run_study
from eval.study.store import Place
from robust_models import ImageSet, save
from robust_models.runtime.command import run
from robust_models.runtime.config import resolve
from tests.tiny import tiny_classifier, tiny_pixels

NETWORKS = ("one", "two", "judge")


def write_inputs(root: Path) -> None:
    """Three classifiers, 20 labelled images to refine, 40 real ones."""
    for seed, name in enumerate(NETWORKS):
        torch.manual_seed(seed)
        save(tiny_classifier(), root / f"{name}.safetensors")
    for seed, (name, n) in enumerate({"made": 20, "real": 40}.items()):
        pixels, labels = tiny_pixels(n, seed)
        np.savez(root / f"{name}.npz", arr_0=pixels, arr_1=labels)


def values(root: Path, **changed: Any) -> dict[str, Any]:
    """A recipe: two classifiers, one image set, two eps, and so 1 + 4 cells."""
    return {
        "out": str(root / "out"),
        "title": "Tiny",
        "classifiers": [{"name": name, "ckpt": str(root / f"{name}.safetensors")} for name in NETWORKS[:2]],
        "images": [{"name": "made", "path": str(root / "made.npz")}],
        "eps": [0.5, 1],
        "steps": [1],
        "judge": f"classifier:{root / 'judge.safetensors'}",
        "reference": str(root / "real.npz"),
        "device": "cpu",
        "precision": "fp32",
        **changed,
    }


def config(root: Path, **changed: Any) -> StudyConfig:
    return resolve(StudyConfig, values(root, **changed), {})


def pretended(images: ImageSet, refinement: Refinement, scorer: Scorer, place: Place, *, keep: bool) -> dict[str, Any]:
    """Stands in for run_cell where bookkeeping is tested: a number that the key decides."""
    place.arrays.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place.arrays, features=np.zeros((len(images), 2)))
    return {"num_images": len(images), "scores": {"frechet": int(place.key[:6], 16) / 1e6}}


class Told:
    """Stands in for the report: keeps what it was given."""

    results: Results | None = None

    def __call__(self, results: Results, out: Path) -> dict[str, Path]:
        self.results = results
        return {"html": out / "report.html"}


def study(config: StudyConfig, part: Part = Part()) -> tuple[dict[str, Any], Results | None]:  # noqa: B008
    """A run with the report's stand-in: its summary, and the results that the report would tell."""
    told = Told()
    summary = run_study(config, part, write_report=told)
    assert summary is not None
    return summary, told.results


def scores(results: Results | None) -> dict[Any, dict[str, float]]:
    """The table: every number of every cell, and of every classifier."""
    assert results is not None
    table: dict[Any, dict[str, float]] = {cell.axes: cell.scores for cell in results.cells}
    for one in results.classifiers:
        table[one.name] = {f"{accuracy.norm} {accuracy.eps}": accuracy.value for accuracy in one.accuracies}
    return table


def log(out: Path) -> list[dict[str, Any]]:
    """Every job that ended, in order."""
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(out: Path) -> list[str]:
    return [row["key"] for row in log(out) if row["status"] == "done"]


def command(root: Path, *words: str, **changed: Any) -> int:
    """python -m eval study of the recipe."""
    recipe = root / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values(root, **changed)))
    return run(STUDY, ["--config", str(recipe), *words])
