"""The study of augmentation, in little: equal steps, pairs, samples refined by a cell's own classifier, kills."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from eval.study.augmentation.cells import Augmentation, Cell
from eval.study.augmentation.config import AugmentationConfig
from eval.study.augmentation.run import run_augmentation
from eval.study.augmentation.summary import Estimate, answer, cautions, report, rows
from eval.study.cli import STUDY
from eval.study.config import recipe_values
from robust_models import load, save
from robust_models.errors import UserError
from robust_models.images import open_images
from robust_models.runtime.command import run
from robust_models.runtime.config import RECIPES, resolve
from robust_models.runtime.signals import EXIT_STATUS
from tests.study import log
from tests.tiny import tiny_classifier, tiny_pixels

TINY_RECIPE = {
    "arch": "preact_resnet10_w8",
    "batch_size": 10,
    "data": {"validation": 5},
    "augment": {"crop_padding": 0, "flip": False},
    "attack": {"eps": 0.3, "step_size": 0.3, "steps": 1},
    "precision": "fp32",
}


@pytest.fixture
def root(tmp_path):
    """Real images, those that measure, samples with and without labels, a refiner and a recipe to train by."""
    for seed, (name, n) in enumerate({"real": 60, "test": 30, "made": 25}.items()):
        pixels, labels = tiny_pixels(n, seed)
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=labels)
    np.savez(tmp_path / "unlabelled.npz", arr_0=tiny_pixels(25, 3)[0])
    torch.manual_seed(0)
    save(tiny_classifier(), tmp_path / "refiner.safetensors")  # names its classes, which the images do not
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TINY_RECIPE))
    return tmp_path


def values(root: Path, **changed: Any) -> dict[str, Any]:
    made = str(root / "made.npz")
    refine = {"ckpt": str(root / "refiner.safetensors"), "eps": 1, "steps": 2}
    return {
        "out": str(root / "out"),
        "data": str(root / "real.npz"),
        "test": str(root / "test.npz"),
        "amounts": [0, 40],
        "train": str(root / "train.yaml"),
        "trainings": [{"name": "robust"}],
        "updates": 8,
        "added": [{"name": "raw", "path": made}, {"name": "refined", "path": made, "refine": refine}],
        "seeds": [0, 1, 2],
        "robust": {"eps": 0.3, "steps": 2},
        "device": "cpu",
        **changed,
    }


def config(root: Path, **changed: Any) -> AugmentationConfig:
    return resolve(AugmentationConfig, values(root, **changed), {})


def written(root: Path, **changed: Any) -> str:
    recipe = root / "augmentation.yaml"
    recipe.write_text(yaml.safe_dump({"study": "augmentation", **values(root, **changed)}))
    return str(recipe)


def test_every_classifier_takes_the_same_steps_and_is_told_by_command(root, capsys):
    assert run(STUDY, ["--config", written(root), "--seeds", "0,1,2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    cells = json.loads((root / "out" / "results.json").read_text())["cells"]
    assert summary["num_done"] == summary["num_cells"] == len(cells) == 15
    assert {cell["updates"] for cell in cells} == {8}
    assert {cell["n"] for cell in cells} == {30}
    y = tiny_pixels(30, 1)[1]
    shares = np.bincount(y, minlength=3) / len(y)
    for cell in cells:
        for k, score in enumerate(("clean", "robust")):
            assert cell[score] == pytest.approx(sum(shares * [pair[k] for pair in cell["per_class"].values()]))
    assert [(row["amount"], row["added"]) for row in summary["rows"]] == [
        *((0, name) for name in ("raw", "refined")),
        *((40, name) for name in ("none", "raw", "refined")),
    ]
    text = (root / "out" / "report.md").read_text()
    assert summary["answer"] in text
    assert "refined: refined by a classifier that may have seen more labels" in text

    before = log(root / "out")
    assert run(STUDY, ["--config", written(root)]) == 0  # once more: nothing is trained again
    assert log(root / "out") == before
    assert "15 of 15 classifiers in " in capsys.readouterr().out


def test_cells_train_on_what_they_say(root):
    study = Augmentation(config(root), torch.device("cpu"))
    real, _ = tiny_pixels(60, 0)
    everything = {x.tobytes() for x in real}
    drawn = [np.load(study.draw(40, seed))["arr_0"] for seed in (0, 1)]
    assert {x.tobytes() for x in drawn[0]} < everything
    assert {x.tobytes() for x in drawn[0]} != {x.tobytes() for x in drawn[1]}
    assert np.array_equal(np.load(study.draw(20, 0))["arr_0"], drawn[0][:20])  # a larger amount holds the smaller one

    run_augmentation(config(root))
    samples = {name: study.samples_job(Cell("robust", 40, name, 1)) for name in ("raw", "refined")}
    raw, refined = (open_images(job.place.arrays) for job in samples.values())
    made, labels = tiny_pixels(25, 2)
    assert np.array_equal(raw.read(0, 25).permute(0, 2, 3, 1).numpy(), made)
    assert raw.labels.tolist() == refined.labels.tolist() == labels.tolist()
    moved = (refined.read(0, 25).float() - raw.read(0, 25).float()).div(255).flatten(1).norm(dim=1)
    assert moved.max() == pytest.approx(1, abs=0.05)

    alone = study.train_config(Cell("robust", 0, "raw", 1), samples["raw"].place.arrays, root)
    mixed = study.train_config(Cell("robust", 40, "raw", 1), samples["raw"].place.arrays, root)
    bare = study.train_config(Cell("robust", 40, "none", 1), None, root)
    assert (alone.data.path, alone.data.generated) == (str(samples["raw"].place.arrays), None)
    assert mixed.data.path == bare.data.path == str(study.draw(40, 1))
    assert (mixed.data.generated, mixed.data.generated_share) == (samples["raw"].place.arrays, 0.7)
    assert [one.data.validation for one in (alone, mixed, bare)] == [0, 0, 0]
    assert [one.epochs for one in (alone, mixed, bare)] == [4, 2, 2]
    assert mixed.seed == 1


def test_samples_without_labels_take_the_targets_and_a_cells_own_classifier_refines(root):
    own = {"name": "own", "path": str(root / "unlabelled.npz"), "refine": {"ckpt": "trained:robust", "eps": 0}}
    study = Augmentation(config(root, added=[own], seeds=[0, 1]), torch.device("cpu"))
    assert {cell.amount for cell in study.cells if cell.added == "own"} == {40}  # there is no classifier of 0 images
    run_augmentation(config(root, added=[own], seeds=[0, 1]))
    x = torch.from_numpy(tiny_pixels(25, 3)[0]).permute(0, 3, 1, 2).float() / 255
    places = set()
    for seed in (0, 1):
        refiner = load(study.cell_job(Cell("robust", 40, "none", seed)).place.folder / "classifier.safetensors")
        job = study.samples_job(Cell("robust", 40, "own", seed))
        with torch.no_grad():
            assert open_images(job.place.arrays).labels.tolist() == refiner(x).argmax(1).tolist()
        places.add(job.place.key)
    assert len(places) == 2  # each seed has its own
    assert not any("may have seen more labels" in note for note in cautions(study.config, 0))


def test_estimates_and_differences_are_those_of_a_hand_computation(root):
    pseudo = {"name": "pseudo", "path": str(root / "made.npz"), "refine": {"ckpt": "x.pt", "eps": 0}}
    settings = config(root, amounts=[40], added=[*values(root)["added"], pseudo])
    clean = {"none": [0.5, 0.6, 0.7], "raw": [0.52, 0.6, 0.74], "refined": [0.6, 0.69, 0.81], "pseudo": [0.7, 0.7, 0.7]}
    found = {
        Cell("robust", 40, name, seed): {"clean": value, "robust": value / 2, "per_class": {"a": [value, seed / 8]}}
        for name, shares in clean.items()
        for seed, value in enumerate(shares)
    }
    table = {row["added"]: row for row in rows(settings, found)}
    # 2, 0, 4 points: mean 2, deviation 2, t 4.3027 of 2 degrees of freedom
    against = table["raw"]["against"]["none"]["clean"]
    assert (against.mean, *against.interval) == pytest.approx(
        (2, 2 - 4.302653 * 2 / math.sqrt(3), 2 + 4.302653 * 2 / 3**0.5)
    )
    assert against.sign == 0
    # 8, 9, 7 points
    better = table["refined"]["against"]["raw"]["clean"]
    assert (better.mean, better.interval[0]) == pytest.approx((8, 8 - 4.302653 / math.sqrt(3)))
    assert better.sign == 1
    assert better.signed() == "+8.0 (+5.5 to +10.5)"
    assert {name: [*row["against"]] for name, row in table.items()} == {
        "none": [],
        "raw": ["none"],
        "refined": ["none", "raw", "pseudo"],  # new labels alone are no refinement, but what it is compared with
        "pseudo": ["none"],
    }
    assert table["raw"]["per_class"] == {"a": pytest.approx([0.62, 0.125])}
    said = answer([*table.values()])
    assert "of 2 pairs: clean accuracy significantly higher in 1 and lower in 0" in said
    text = report(settings, [*table.values()], said, [])
    assert "| robust | 40 | refined | raw | +8.0 (+5.5 to +10.5) | +4.0 (+2.8 to +5.2) |" in text
    assert "| robust | 40 | raw | 62.0 (34.3 to 89.7) | 31.0 (17.2 to 44.8) | +2.0 (-3.0 to +7.0) | " in text
    # a seed that is not there yet counts on neither side
    del found[Cell("robust", 40, "raw", 2)]
    part = {row["added"]: row for row in rows(settings, found)}["refined"]["against"]["raw"]["clean"]
    assert (part.mean, part.interval) == (pytest.approx(8.5), None)
    assert "Nothing to answer yet" in answer([table["none"], table["raw"]])
    assert str(Estimate.of([0.25])) == "25.0"


def test_a_study_that_is_killed_goes_on_inside_the_training(root):
    recipe = written(root, updates=400, seeds=[0], amounts=[40], robust={"eps": 0.3, "steps": 1})
    argv = [sys.executable, "-m", "bigroc", "study", "--config", recipe]
    folder = root / "out"
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
    )
    deadline = time.time() + 120
    while not list(folder.glob("cells/*/run/metrics.jsonl")) and time.time() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == EXIT_STATUS[signal.SIGTERM]
    (state,) = folder.glob("cells/*/run/state.pt")
    assert state.stat().st_size > 0  # of the training that was cut off, which goes on from there
    summary = run_augmentation(config(root, updates=400, seeds=[0], amounts=[40], robust={"eps": 0.3, "steps": 1}))
    assert summary["num_done"] == summary["num_cells"] == 3
    assert not list(folder.glob("cells/*/run"))


def test_two_processes_share_a_study_to_the_figures_of_one(root):
    alone = run_augmentation(config(root, out=str(root / "alone"), seeds=[0, 1]))
    argv = [sys.executable, "-m", "bigroc", "study", "--config", written(root, seeds=[0, 1]), "--json"]
    both = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    told = [json.loads(out) for out, _ in said]
    done = [row["key"] for row in log(root / "out") if row["status"] == "done"]
    assert len(done) == len(set(done)) == len(log(root / "alone"))
    for found in told:
        assert (found["num_done"], found["failed"]) == (alone["num_cells"], [])
    figures = [json.loads((root / name / "results.json").read_text())["rows"] for name in ("alone", "out")]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"updates": 9},
            "updates: 9 does not come out as whole epochs for all (of 2, 4 batches); give a multiple of 4",
        ),
        ({"amounts": [5]}, "amounts: 5 are less than a batch of 10 (trainings.robust)"),
        ({"amounts": [400]}, "amounts: 400 is more than the 60 real images"),
        ({"test": None}, "test: none, and held_out is 0"),
        ({"test": None, "held_out": 60}, "held_out: 60 leaves nothing of the 60 images"),
        ({"test": "nothing.npz"}, "test: nothing.npz"),
        ({"seeds": [0, 0]}, "seeds: 0 stands twice"),
        ({"trainings": [{"name": "a", "with": {"epoch": 3}}]}, "trainings.a: epoch"),
        ({"added": [{"name": "none", "path": "made.npz"}]}, "none is what training without added samples is called"),
        ({"added": [{"name": "a", "path": "bundled:nothing"}]}, "added.a: no bundled file nothing.npz"),
        ({"added": [{"name": "a", "path": "UNLABELLED"}]}, "added.a: UNLABELLED: has no labels; give refine"),
        ({"added": [{"name": "a", "path": "MADE", "refine": {"ckpt": "x"}}]}, "added.a.refine.eps"),
        (
            {"added": [{"name": "a", "path": "MADE", "refine": {"ckpt": "x", "eps": 1, "out": "b"}}]},
            "out: the study ch",
        ),
        ({"added": [{"name": "a", "path": "MADE", "refine": {"ckpt": "trained:x", "eps": 1}}]}, "no training 'x'"),
        (
            {"added": [{"name": "a", "path": "MADE", "refine": {"ckpt": "x.pt", "eps": 1}}]},
            "added.a: ckpt: no file x.pt",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_before_any_work(root, capsys, changed, message):
    made, unlabelled = str(root / "made.npz"), str(root / "unlabelled.npz")
    text = json.dumps(changed).replace("UNLABELLED", unlabelled).replace("MADE", made)
    assert run(STUDY, ["--config", written(root, **json.loads(text))]) == 2
    told = capsys.readouterr().err
    assert message.replace("UNLABELLED", unlabelled) in told
    assert len(told.splitlines()) == 1
    assert not (root / "out").exists()


def test_the_shipped_recipe_fits_in_both_forms(capsys):
    header = [line for line in (RECIPES / "augmentation.yaml").read_text().splitlines() if line.startswith("#")]
    for word in ("--config augmentation.yaml --quick", "Cost:", "Score:"):
        assert any(word in line for line in header), word
    for quick in (False, True):
        found = recipe_values("augmentation.yaml", quick=quick)
        assert found.pop("study") == "augmentation"
        resolve(AugmentationConfig, found, {})
    assert run(STUDY, ["--config", "augmentation.yaml", "--quick", "--dry-run"]) == 0
    assert "classifiers of " in capsys.readouterr().out
    with pytest.raises(UserError, match="quick"):
        recipe_values("cifar_l2.yaml", quick=True)
