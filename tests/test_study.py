"""Studies: every cell once, found again by the content of what it depends on."""

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

import eval.study.plan as plan_module
import eval.study.run as run_module
import refine.cli
from bigroc.recipes import recipes
from eval.quality.config import QualityConfig, StatisticsConfig
from eval.quality.run import run_quality
from eval.quality.statistics import run_statistics
from eval.study.cell import EXAMPLES
from eval.study.cli import STUDY
from eval.study.config import StudyConfig, recipe_values
from eval.study.gather import load_results
from eval.study.grid import Share, grid
from eval.study.inputs import open_inputs
from eval.study.keys import training_depends
from eval.study.plan import train_config
from eval.study.report.compare import Difference
from eval.study.report.digest import digested
from eval.study.report.latex import latex_text
from eval.study.report.page import page_text
from eval.study.report.summary import summary as summary_in_words
from eval.study.report.tables import json_text
from eval.study.results import Axes
from eval.study.run import Part, work
from eval.study.store import Place, key_of
from robust_models import UserError, embedded_names, load, save, to_float
from robust_models.checkpoints.flags import Source
from robust_models.metrics import read_statistics
from robust_models.runtime.command import run
from robust_models.runtime.config import RECIPES, STRICT, as_plain, overlaid, resolve
from robust_models.runtime.files import located, sha256_of
from tests.study import (
    command,
    config,
    done,
    log,
    pretended,
    scores,
    study,
    values,
    write_inputs,
)
from tests.tiny import tiny_classifier, tiny_pixels
from train.config import TrainConfig

ROBUST = {"eps": {"l2": [0.25], "linf": [0.01]}, "steps": 2, "limit": 16}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def root(tmp_path, inputs):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def pretend(monkeypatch):
    """Cells and classifiers that cost nothing, for the tests of bookkeeping."""
    monkeypatch.setattr(plan_module, "run_cell", pretended)
    monkeypatch.setattr("eval.study.run._environment", lambda: {"machine": "any"})
    monkeypatch.setattr(plan_module, "run_classifier", lambda *found: {"num_images": 0, "accuracies": []})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, inputs):
    """A finished study with all that can be measured, and its results."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(inputs, root, dirs_exist_ok=True)
    settings = config(root, data=str(root / "real.npz"), robust=ROBUST, reference_images=str(root / "real.npz"))
    return root, settings, *study(settings)


def test_a_cell_has_the_images_and_scores_of_the_two_commands(finished):
    root, settings, summary, results = finished
    assert summary["failed"] == []
    assert (summary["num_cells"], summary["num_done"], summary["missing"]) == (5, 5, 0)
    assert [cell.axes for cell in results.cells] == [
        Axes("made"),
        *(Axes("made", name, "l2", eps, 1, "given", "ce") for name in ("one", "two") for eps in (0.5, 1.0)),
    ]
    out = root / "refined.npz"
    words = f"--ckpt {root}/two.safetensors --input {root}/made.npz --out {out} --eps 1 --steps 1 --precision fp32"
    assert refine.cli.main([*words.split(), "--device", "cpu"]) == 0
    for cell, images in ((results.cells[0], root / "made.npz"), (results.cells[-1], out)):
        found = run_quality(
            QualityConfig(
                images=images,
                reference=root / "real.npz",
                features=settings.judge,
                metrics="fid,is,prc",
                device="cpu",
                cache="none",
            )
        )
        names = ("frechet", "inception_score", "precision", "recall")
        # The study's reference is stored as moments, the command's is images: equal up to the rounding of a float64.
        assert [cell.scores[name] for name in names] == pytest.approx([found[name] for name in names], rel=1e-9)
        with np.load(images) as stored, np.load(cell.arrays) as arrays:
            assert np.array_equal(arrays["examples_u8"], stored["arr_0"].transpose(0, 3, 1, 2)[:EXAMPLES])
            seen = torch.from_numpy(arrays["features"])
            y = torch.from_numpy(stored["arr_1"])
        judge = load(root / "judge.safetensors")
        x = to_float(torch.from_numpy(np.load(images)["arr_0"].transpose(0, 3, 1, 2).copy()))
        torch.testing.assert_close(judge.features(x), seen)
        assert cell.scores["judge_agreement"] == (judge(x).argmax(1) == y).double().mean().item()
        assert cell.num_images == 20
    manifest = [json.loads(line) for line in Path(f"{out}.manifest.jsonl").read_text().splitlines()]
    assert results.cells[-1].scores["distance"] == np.mean([row["distance"] for row in manifest])
    assert results.cells[-1].scores["target_agreement"] == np.mean([row["on_target_after"] for row in manifest])
    assert results.cells[0].scores["distance"] == 0
    assert "target_agreement" not in results.cells[0].scores
    assert not [path for path in (settings.out / "cells").iterdir() if path.is_dir()]  # nothing big is left


def test_classifiers_come_with_accuracies_a_panel_and_what_they_are(finished):
    root, _, _, results = finished
    one = results.classifiers[0]
    assert (one.name, one.arch, one.threat_model, one.num_images) == ("one", "preact_resnet10_w16", "none", 16)
    assert [(accuracy.norm, accuracy.eps, accuracy.attack) for accuracy in one.accuracies] == [
        ("", 0.0, ""),
        ("l2", 0.25, "PGD-2, step 0.3125"),
        ("linf", 0.01, "PGD-2, step 0.0125"),
    ]
    assert all(low <= accuracy.value <= high for accuracy in one.accuracies for low, high in [accuracy.interval])
    model = load(root / "one.safetensors")
    with np.load(one.panel) as panel, np.load(root / "real.npz") as real:
        assert np.array_equal(panel["x_u8"], real["arr_0"][:8].transpose(0, 3, 1, 2))
        assert np.array_equal(panel["y"], real["arr_1"][:8])
        x = to_float(torch.from_numpy(panel["x_u8"])).requires_grad_()
        torch.nn.functional.cross_entropy(model(x), torch.from_numpy(panel["y"]), reduction="sum").backward()
        torch.testing.assert_close(torch.from_numpy(panel["gradient"]), x.grad)


@pytest.mark.parametrize(("stop", "loss", "flag"), [("median", "energy", "energy"), ("confidence", "ce", "confidence")])
def test_a_cell_that_stops_stops_at_the_median_of_the_real_images(root, stop, loss, flag):
    settings = config(root, eps=[1], loss=loss, stop=["never", stop], reference_images=str(root / "real.npz"))
    _, results = study(settings)
    assert results is not None
    free, stopped = (cell for cell in results.cells if cell.axes.classifier == "two")
    assert (free.axes.stop, stopped.axes.stop) == ("never", stop)
    assert stopped.scores["distance"] < free.scores["distance"]
    assert f"--stop-{flag} {root}/real.npz" in stopped.provenance.command
    assert "--stop-" not in free.provenance.command
    out, words = root / "refined.npz", stopped.provenance.command.partition(" && ")[0]
    words = words.removeprefix("bigroc refine ").replace("refined.npz", str(out))
    assert refine.cli.main([*words.split(), "--device", "cpu"]) == 0
    with np.load(out) as stored, np.load(stopped.arrays) as arrays:
        assert np.array_equal(arrays["examples_u8"], stored["arr_0"].transpose(0, 3, 1, 2)[:EXAMPLES])


def test_every_figure_says_where_it_came_from(finished):
    root, settings, _, results = finished
    told = results.cells[-1].provenance
    assert told.command.startswith(f"bigroc refine --ckpt {root}/two.safetensors --input {root}/made.npz")
    assert "--eps 1.0 --steps 1 --targets given --loss ce --precision fp32 && bigroc eval quality" in told.command
    assert set(told.inputs) == {"checkpoint", "images", "judge", "reference", "reference_images"}
    assert {"torch", "numpy", "bigroc", "git_revision"} <= set(told.versions)
    assert told.config["eps"] == 1.0
    assert told.key in done(settings.out)
    assert "bigroc eval robust --ckpt" in results.classifiers[0].provenance.command
    assert "--norm linf --eps 0.01" in results.classifiers[0].provenance.command
    assert results.reference_words == (
        f"40 images of real.npz, KID in the 128 features of classifier:{root}/judge.safetensors"
    )
    stored = read_statistics(results.reference)
    assert stored is not None
    assert stored.n == 40


def test_what_is_done_is_not_done_again_whatever_things_are_called(finished):
    root, settings, _, results = finished
    before = log(settings.out)
    study(settings)
    names = [replace(one, name=f"new {one.name}") for one in settings.classifiers]
    moved = root / "moved.safetensors"
    moved.write_bytes((root / "one.safetensors").read_bytes())
    names[0] = replace(names[0], ckpt=str(moved))
    _, renamed = study(replace(settings, title="Other", vary=("classifier",), classifiers=tuple(names)))
    assert log(settings.out) == before
    assert len({row["key"] for row in before}) == len(before) == 1 + 1 + 2 + 5  # two references, classifiers, cells
    assert [cell.scores for cell in renamed.cells] == [cell.scores for cell in results.cells]
    assert renamed.cells[1].axes.classifier == "new one"
    assert scores(load_results(settings.out, settings)) == scores(results)


def test_changed_content_is_never_found(root, pretend):
    settings = config(root)
    study(settings)
    cells = lambda: sum(row["kind"] == "cells" for row in log(settings.out))  # noqa: E731
    assert cells() == 5
    torch.manual_seed(7)
    save(tiny_classifier(), root / "one.safetensors")
    study(settings)
    assert cells() == 5 + 2  # those of one classifier
    pixels, labels = tiny_pixels(12)
    np.savez(root / "made.npz", arr_0=pixels, arr_1=(labels + 1) % 3)  # targets only
    study(settings)
    assert cells() == 7 + 5
    np.savez(root / "real.npz", arr_0=tiny_pixels(40, 9)[0])
    study(settings)
    assert cells() == 12 + 5
    torch.manual_seed(8)
    save(tiny_classifier(), root / "judge.safetensors")
    study(settings)
    assert cells() == 17 + 5
    study(config(root, eps=[0.5, 2]))
    assert cells() == 22 + 2
    assert len(set(done(settings.out))) == len(done(settings.out))


def test_a_limit_draws_by_the_seed_and_a_whole_set_has_one(root):
    images = [{"name": "all", "path": f"{root}/made.npz"}, {"name": "some", "path": f"{root}/made.npz", "limit": 6}]
    settings = config(root, images=images, seeds=[0, 1], eps=1, classifiers=values(root)["classifiers"][:1])
    _, results = study(settings)
    assert [(cell.axes.images, cell.axes.seed, cell.axes.is_raw) for cell in results.cells] == [
        ("all", 0, True),
        ("some", 0, True),
        ("some", 1, True),
        ("all", 0, False),
        ("some", 0, False),
        ("some", 1, False),
    ]
    whole, first, second = (np.load(cell.arrays)["features"] for cell in results.cells[:3])
    for part in (first, second):
        places = [int(np.abs(whole - row).sum(1).argmin()) for row in part]
        assert len(set(places)) == 6
        assert places == sorted(places)
        np.testing.assert_allclose(part, whole[places], rtol=1e-4, atol=1e-4)
    assert not np.array_equal(first, second)


def test_a_failed_cell_stops_no_other_and_is_tried_again(root, pretend, monkeypatch, capsys):
    settings = config(root)
    monkeypatch.setattr(run_module, "_written", lambda results, out: {})

    def short_of_memory(images, refinement, *rest, **named):
        if refinement.axes.eps == 1:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")
        return pretended(images, refinement, *rest, **named)

    monkeypatch.setattr(plan_module, "run_cell", short_of_memory)
    summary, results = study(settings)
    line = "RuntimeError: CUDA out of memory. Tried to allocate 20 GiB"
    assert [failed["error"] for failed in summary["failed"]] == [line, line]
    assert [cell.error for cell in results.cells] == [None, None, line, None, line]
    assert "failed: made by one: l2 eps 1, 1 steps, given, ce: RuntimeError" in capsys.readouterr().err
    assert command(root, "--merge") == 1
    told = capsys.readouterr().out
    assert "2 failed; the same command tries them again:" in told
    assert f"made by two: l2 eps 1, 1 steps, given, ce: {line}" in told
    error = next((settings.out / "cells").glob("*.error.json"))
    assert "short_of_memory" in str(json.loads(error.read_text())["traceback"])

    monkeypatch.setattr(plan_module, "run_cell", pretended)
    before = done(settings.out)
    summary, results = study(settings)
    assert summary["failed"] == []
    assert len(done(settings.out)) == len(before) + 2
    assert not list((settings.out / "cells").glob("*.error.json"))


def test_a_run_that_ends_in_the_middle_goes_on(root, pretend, monkeypatch):
    settings = config(root)
    expected = scores(study(replace(settings, out=root / "whole"))[1])
    write = Place.write
    for fatal in range(3):

        def killed(self, *found, count=[0], fatal=fatal):  # noqa: B006
            count[0] += 1
            if count[0] > fatal:
                raise KeyboardInterrupt
            write(self, *found)

        monkeypatch.setattr(Place, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            study(settings)
    monkeypatch.setattr(Place, "write", write)
    summary, results = study(settings)
    assert summary["failed"] == []
    assert scores(results) == expected
    assert len(done(settings.out)) == len(set(done(settings.out))) == len(done(root / "whole"))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_shares_part_the_jobs_exactly(n):
    jobs = list(range(19))
    shares = [Share.parse(f"{i}/{n}").of(jobs) for i in range(1, n + 1)]
    assert sorted(itertools.chain(*shares)) == jobs
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_are_merged_to_the_same_table(root, pretend, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "_written", lambda results, out: {})
    settings = config(root, data=str(root / "real.npz"), robust=ROBUST)
    expected = scores(study(replace(settings, out=root / "whole"))[1])
    summary, results = study(settings, Part(merge=True))
    assert results is None  # nothing to report on
    assert summary["missing"] == 7
    for i in (1, 2, 3):
        summary, results = study(settings, Part(Share(i, 3)))
        assert results is None
        assert summary["share"]["jobs"] == (3, 2, 2)[i - 1]
        if i == 2:
            summary, results = study(settings, Part(merge=True))
            assert summary["missing"] == results.missing == 2
            assert len(results.cells) == 3
            words = {"data": str(root / "real.npz"), "robust": ROBUST}
            assert command(root, "--merge", **words) == 1
            assert "2 jobs are not done yet" in capsys.readouterr().out
    before = log(settings.out)
    summary, results = study(settings, Part(merge=True))
    assert summary["missing"] == 0
    assert scores(results) == expected
    assert log(settings.out) == before


def test_what_another_process_has_claimed_is_left_to_it(tmp_path, monkeypatch):
    made = []

    def job(key):
        place = Place(tmp_path, "cells", key)
        return plan_module.Job(place, key, {"versions": {}}, lambda place: made.append(place.key) or {})

    jobs = [job(key) for key in "abc"]
    held = jobs[0].place.claim()
    assert held.__enter__()
    with jobs[0].place.claim() as again:
        assert not again
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        assert made == ["b", "c"]
        if len(naps) == 1:  # the other process dies, and its claim with it
            held.__exit__(None, None, None)

    monkeypatch.setattr("eval.study.run.time.sleep", sleep)
    work(lambda: jobs)
    assert made == ["b", "c", "a"]
    assert len(naps) == 1


TRAINED = {
    "arch": "preact_resnet10_w16",
    "epochs": 1,
    "batch_size": 16,
    "device": "cpu",
    "precision": "fp32",
    "data": {"validation": 8},
    "augment": {"crop_padding": 1},
    "attack": {"eps": 0.5, "steps": 1},
    "validate": {"steps": 1, "show": 0},
}


def test_a_train_recipe_is_run_once_and_then_is_a_classifier(root, pretend):
    recipe = root / "train.yaml"
    recipe.write_text(json.dumps(TRAINED))
    changes = {"data.path": f"{root}/real.npz", "attack": {"eps": 0}}
    classifiers = [
        *values(root)["classifiers"][:1],
        {"name": "made here", "train": str(recipe), "with": changes},
        {"name": "broken", "train": str(recipe), "with": {"data.path": f"{root}/none.npz"}},
    ]
    settings = config(root, classifiers=classifiers, eps=1)
    summary, results = study(settings)
    assert len(summary["failed"]) == 2  # the classifier and its cell
    assert all("training of broken failed" in failed["error"] for failed in summary["failed"])
    assert "no such file" in results.classifiers[2].error
    made = results.classifiers[1]
    assert (made.arch, made.threat_model, made.error) == ("preact_resnet10_w16", "none", None)
    checkpoint = results.cells[2].provenance.command.split()[3]
    assert Path(checkpoint).parent.parent == settings.out / "trained"
    before = done(settings.out)
    classifiers[1]["name"] = "renamed"
    summary, results = study(config(root, classifiers=classifiers[:2], eps=1))
    assert done(settings.out) == before
    assert summary["failed"] == []


def test_a_training_is_known_by_its_recipe_and_the_content_of_its_data(root):
    def key(**changed):
        changes = {**TRAINED, "data": {"path": f"{root}/real.npz"}, **changed}
        return key_of(training_depends(resolve(TrainConfig, {**changes, "out": "any"}, {})))

    first = key()
    assert key(device="auto") == first
    assert key(seed=1) != first
    assert key(data={"path": f"{root}/made.npz"}) != first
    np.savez(root / "real.npz", arr_0=tiny_pixels(40, 9)[0])
    assert key() != first


def test_a_training_is_known_again_when_recipes_have_got_more_fields(root):
    @pydantic_dataclass(frozen=True, config=STRICT)
    class Later:
        strength: float = 0.0

    @pydantic_dataclass(frozen=True, config=STRICT, kw_only=True)
    class LaterConfig(TrainConfig):
        dither: bool = False
        later: Later = Field(default_factory=Later)

    def key(schema, **changed):
        return key_of(training_depends(resolve(schema, {**TRAINED, "out": "any", **changed}, {})))

    assert key(LaterConfig) == key(TrainConfig)
    assert key(TrainConfig, epochs=1) == key(TrainConfig)  # as it is in TRAINED
    for changed in ({"dither": True}, {"later": {"strength": 0.1}}, {"seed": 1}, {"attack": {"eps": 0.5, "steps": 2}}):
        assert key(LaterConfig, **changed) != key(TrainConfig)


READ_IN_TRAINING = {  # every field of a recipe that may name images
    "data.path": lambda path: {"data": {"path": path}},
    "data.generated": lambda path: {"data": {"path": "cifar10", "generated": path}},
    "energy.start": lambda path: {"data": {"path": "cifar10"}, "energy": {"start": path}},
}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("field", READ_IN_TRAINING)
def test_a_training_is_another_one_where_images_that_it_reads_are_others_under_the_same_name(tmp_path, field, kind):
    def write(seed: int) -> Path:
        pixels = tiny_pixels(4, seed)[0]
        if kind == "file":
            np.savez(tmp_path / "images.npz", arr_0=pixels)
            return tmp_path / "images.npz"
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels[0]).save(tmp_path / "images" / f"{seed}.png")
        return tmp_path / "images"

    def key() -> str:
        changes = {**TRAINED, **READ_IN_TRAINING[field](str(path))}
        return key_of(training_depends(resolve(TrainConfig, {**changes, "out": "any"}, {})))

    path = write(0)
    first = key()
    assert key() == first
    write(1)
    assert key() != first


def test_quick_forms_lie_over_the_recipe_and_flags_over_both(root, tmp_path, capsys):
    assert overlaid({"a": {"b": 1, "c": 2}, "d": [1]}, {"a.b": 3, "a": {"e": 4}, "d": [2]}) == {
        "a": {"b": 3, "c": 2, "e": 4},
        "d": [2],
    }
    quick = {"images": [{"name": "few", "path": f"{root}/made.npz"}], "eps": [2]}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps({"eps": [1, 3], "quick": quick}))
    assert recipe_values(str(recipe), quick=False) == {"out": "runs/studies/mine", "eps": [1, 3]}
    assert recipe_values(str(recipe), quick=True) == {"out": "runs/studies/mine-quick", **quick}
    assert command(root, "--dry-run", "--json", "--quick", "--eps", "0.25,8/255", quick=quick) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["images"][0]["name"] == "few"
    assert told["config"]["eps"] == [0.25, 8 / 255]
    assert (told["cells"], told["cells_done"], told["classifiers"]) == (5, 0, 2)
    assert not (root / "out").exists()


def test_the_command_tells_the_best_cells_and_nothing_is_written_twice(root, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "_written", lambda results, out: {"html": out / "report.html"})
    assert command(root) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["1000", "KID", "Frechet", "IS", "precision", "recall", "agrees", "moved"]
    assert told[1].startswith("made raw ")
    distances = [float(line.split()[-7]) for line in told[2:5]]
    assert distances == sorted(distances)
    assert told[5].startswith(f"5 of 5 cells in {root}/out; ")
    assert told[6] == f"html: {root}/out/report.html"
    assert command(root, "--dry-run") == 0
    assert "# 5 cells, 5 of them done; 2 classifiers, 2 of them measured, 0 to train" in capsys.readouterr().out


@pytest.mark.parametrize("accept", ["gain", "no gain"])
def test_a_cell_at_eps_auto_is_what_its_command_makes_and_says_which_eps(root, monkeypatch, accept):
    monkeypatch.setattr("refine.auto_eps.is_sure_gain", lambda verdicts: accept == "gain")
    real, classifiers = str(root / "real.npz"), values(root)["classifiers"][1:]
    settings = config(root, eps=["auto"], reference_images=real, classifiers=classifiers)
    summary, results = study(settings)
    assert results is not None
    raw, cell = results.cells
    assert (cell.axes.eps, cell.eps, raw.eps) == ("auto", cell.scores["eps_taken"], 0)
    assert (cell.eps > 0) == (cell.scores["distance"] > 0) == (accept == "gain")
    assert summary["failed"] == []
    assert [row["eps_taken"] for row in summary["best"] if "eps auto" in row["cell"]] == [cell.eps]
    words = cell.provenance.command.partition(" && ")[0].removeprefix("bigroc refine ")
    assert f"--eps auto --steps 1 --targets given --loss ce --reference {real} --judge {settings.judge}" in words
    out = root / "refined.npz"
    assert refine.cli.main([*words.replace("refined.npz", str(out)).split(), "--device", "cpu"]) == 0
    with np.load(out) as stored, np.load(cell.arrays) as arrays:
        assert np.array_equal(arrays["examples_u8"], stored["arr_0"].transpose(0, 3, 1, 2)[:EXAMPLES])
    digest = digested(results, resamples=20)
    (made,) = digest.sets
    page = page_text(digest)
    assert "eps found" in page
    assert ("eps auto was chosen on half of the very images" in page) == (accept == "gain")
    assert ("auto found no sure gain and left the images as they came" in page) == (accept == "no gain")
    assert [row.cell for row in made.refined] == ([cell] if accept == "gain" else [])


def test_cells_are_compared_with_the_images_that_their_seed_draws(root):
    images = [{"name": "made", "path": str(root / "made.npz"), "limit": 12}]
    _, results = study(config(root, images=images, seeds=[0, 1], eps=1, reference_images=str(root / "real.npz")))
    assert results is not None
    digest = digested(results, resamples=20)
    assert [one.name for one in digest.sets] == ["made", "made, seed 1"]
    for one in digest.sets:
        assert one.raw is not None
        for row in one.refined:
            assert row.distance is not None
            assert row.from_raw is not None
            assert row.cell.axes.seed == one.raw.cell.axes.seed
            assert row.from_raw.value == pytest.approx(row.distance.value - one.raw.distance.value)
    page = page_text(digest)
    assert "made, seed 1" in page


def test_an_image_set_has_its_own_eps_and_targets(root):
    other = {"name": "other", "path": str(root / "real.npz"), "eps": [2, "auto"], "targets": "pseudo,class:1"}
    settings = config(root, images=[{"name": "made", "path": str(root / "made.npz")}, other])
    refined = [cell for cell in grid(settings, ["made", "other"]) if not cell.is_raw]
    assert {(cell.images, cell.eps, cell.targets) for cell in refined} == {
        *itertools.product(["made"], [0.5, 1], ["given"]),
        *itertools.product(["other"], [2, "auto"], ["pseudo", "class:1"]),
    }
    assert resolve(StudyConfig, as_plain(settings), {}) == settings


SHIPPED = [f"{one.name}.yaml" for one in recipes() if one.command == "study" and one.name != "augmentation"]


@pytest.mark.parametrize("recipe", SHIPPED)
def test_a_shipped_study_fits_in_both_forms(recipe):
    header = [line for line in (RECIPES / recipe).read_text().splitlines() if line.startswith("#")]
    for word in (f"--config {recipe} --quick", "Cost:", "Score:"):
        assert any(word in line for line in header), word
    for quick, given in ((True, {}), (False, {"images": "[{name: a, path: a.npz}]", "reference": "real.npz"})):
        found = resolve(StudyConfig, recipe_values(recipe, quick=quick), given)
        assert found.out == Path("runs/studies") / (recipe.removesuffix(".yaml") + ("-quick" if quick else ""))
        assert all(train_config(spec, found.out, "cpu") for spec in found.classifiers if spec.train)
        assert len(grid(found, [])) >= 6


@pytest.mark.parametrize("recipe", SHIPPED)
def test_what_a_quick_form_names_comes_with_the_package(recipe):
    found = resolve(StudyConfig, recipe_values(recipe, quick=True), {})
    named = [found.reference, found.reference_images, found.data, *(images.path for images in found.images)]
    assert all(located(path).is_file() for path in named if path is not None)
    assert {str(spec.ckpt) for spec in found.classifiers} <= {*embedded_names()}


def test_the_energy_study_in_little_begins_with_its_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--config ablation_energy.yaml --quick --eps 1 --steps 1 --loss ce,energy --data null --robust.eps {}"
    words += " --judge classifier:cifar10-standard-small --device cpu"
    images = "[{name: VAE, path: 'bundled:vae-cifar10', limit: 20}]"
    assert run(STUDY, [*words.split(), "--images", images]) == 0
    told = capsys.readouterr().out
    page = Path("runs/studies/ablation_energy-quick/report.html").read_text()
    answer = next(line for line in told.splitlines() if line.startswith("answer: ")).removeprefix("answer: ")
    assert answer.startswith("after against before, each at its best, by classifier:cifar10-standard-small: ")
    assert answer.split(" (")[0] in page.partition("<strong>VAE.")[0]
    assert "after, energy, stop median" in page


def test_there_are_eight_shipped_studies():
    assert [name.removesuffix(".yaml").removeprefix("ablation_") for name in SHIPPED] == [
        "certified",
        "classifier",
        "energy",
        "eps",
        "steps",
        "targets",
        "paper_table",
        "refiner_map",
    ]


MISTAKES = {
    r"images\.0\.size: unknown key": {"images": [{"name": "a", "path": "a", "size": 3}]},
    r"classifiers: one stands twice": {"classifiers": [{"name": "one", "ckpt": "one.safetensors"}] * 2},
    r"ckpt: one has neither of ckpt and train": {"classifiers": [{"name": "one"}]},
    r"with: one has no train recipe": {"classifiers": [{"name": "one", "ckpt": "a", "with": {"seed": 1}}]},
    r"classifiers\.one: ckpt: no file none\.pt": {"classifiers": [{"name": "one", "ckpt": "none.pt"}]},
    r"classifiers\.one: train: no file none": {"classifiers": [{"name": "one", "train": "none"}]},
    r"classifiers\.one: attack\.epz: unknown key": {
        "classifiers": [{"name": "one", "train": "cifar_l2.yaml", "with": {"attack.epz": 1}}]
    },
    r"images\.a: none\.npz: no such file": {"images": [{"name": "a", "path": "none.npz"}]},
    r"images\.a: no bundled file none\.npz; there are ": {"images": [{"name": "a", "path": "bundled:none"}]},
    r"images\.wide: .*wide\.npz: images are 16x8": {"images": [{"name": "wide", "path": "wide.npz"}]},
    r"images\.deep: .*: images are uint16; scores are of 8-bit": {"images": [{"name": "deep", "path": "deep.npz"}]},
    r"eps\.1: input should be greater than 0; got 0": {"eps": [1, 0]},
    r"eps: 3 is outside \[0, 1\] for norm=linf": {"eps": {"linf": [3]}, "norm": "linf"},
    r"eps: auto knows where to begin for l2, linf; give numbers for norm l1": {"eps": "auto", "norm": "l1"},
    r"eps: auto compares with real images, and reference holds statistics": {"eps": "auto", "reference": "own.npz"},
    r"images: a has eps of its own, but the study has 2 norms": {
        "images": [{"name": "a", "path": "made.npz", "eps": [1]}],
        "norm": ["l2", "linf"],
        "eps": {"l2": [1], "linf": [0.1]},
    },
    r"targets: 'sure' is none of": {"images": [{"name": "a", "path": "made.npz", "targets": "sure"}]},
    r"images: a: targets: given stands twice": {
        "images": [{"name": "a", "path": "made.npz", "targets": "given,given"}]
    },
    r"images: a: eps: auto stands twice": {"images": [{"name": "a", "path": "made.npz", "eps": "auto,auto"}]},
    r"images\.0\.eps: value should have at least 1 item": {"images": [{"name": "a", "path": "made.npz", "eps": []}]},
    r"images\.bare: targets: given, but bare\.npz has no labels; give that set others": {
        "images": [{"name": "bare", "path": "bare.npz", "targets": "given"}]
    },
    r"images\.three: eps: auto needs 4 images and 4 real ones; got 3 and 40": {
        "images": [{"name": "three", "path": "made.npz", "limit": 3, "eps": "auto"}]
    },
    r"images\.0\.epsilon: unknown key\\n$": {"images": [{"name": "a", "path": "made.npz", "epsilon": 1}]},
    r"eps\.0: .*got '1:30'": {"eps": "1:30"},
    r"eps: has radii for l2, but norm is l2, linf": {"eps": {"l2": [3]}, "norm": ["l2", "linf"]},
    r"norm: 'l3' is none of": {"norm": "l3"},
    r"steps: 7 stands twice": {"steps": [7, 7]},
    r"targets: 'guessed' is none of": {"targets": ["guessed"]},
    r"classifiers\.one: targets: class 'dog' is none of the classifier's 3 classes": {"targets": ["class:dog"]},
    r"loss: 'l2' is none of ce": {"loss": "l2"},
    r"stop\.0: 'always' is none of never, median, confidence": {"stop": "always"},
    r"stop: median is of real images, and reference holds statistics": {"stop": "median", "reference": "own.npz"},
    r"vary: 'epsilon' is no axis": {"vary": ["epsilon"]},
    r"seeds: 2 of them, but no image set has a limit": {"seeds": [0, 1]},
    r"judge: .* is the classifier that refines \(one\)": {"judge": "classifier:one.safetensors"},
    r"judge: features: 'incept' is none of": {"judge": "incept"},
    r"reference: none\.npz: no such file": {"reference": "none.npz"},
    r"reference: .*statistics of classifier:x, but judge is": {"reference": "foreign.npz"},
    r"data: none\.npz: no such file": {"data": "none.npz"},
    r"classifiers\.one: .*far\.npz: labels run from 7 to 7": {"data": "far.npz"},
    r"robust: needs labelled test images": {"robust": {"eps": {"l2": [0.5]}}},
    r"robust\.eps: 4 is outside": {"data": "real.npz", "robust": {"eps": {"linf": [4]}}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_one_line_before_any_work(message, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    pixels = tiny_pixels(12)[0]
    np.savez("wide.npz", arr_0=pixels[:, :8])
    np.savez("deep.npz", arr_0=pixels.astype(np.uint16))
    np.savez("bare.npz", arr_0=pixels)
    np.savez("far.npz", arr_0=pixels, arr_1=np.full(12, 7))
    judge = {"features": f"classifier:{root}/judge.safetensors", "sha256": sha256_of(root / "judge.safetensors")}
    np.savez("own.npz", mu=np.zeros(128), sigma=np.eye(128), n=9, **judge)
    np.savez("foreign.npz", mu=np.zeros(128), sigma=np.eye(128), features="classifier:x", sha256="0", n=9)
    assert command(root, **MISTAKES[message]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    with pytest.raises(UserError, match=message):
        raise UserError(told.removeprefix("error: "))
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cell", "0/3"], "cell: '0/3' is no share; expected I/N"),
        (["--cell", "4/3"], "cell: '4/3' is no share"),
        (["--cell", ""], "cell: '' is no share"),
        (["--cell", "1/3", "--merge"], "merge: does not go with --cell"),
        (["--quick"], "has no quick form; run it without"),
        (["--cel", "1/3"], "--cel: no such flag; did you mean --cell?"),
    ],
)
def test_flags_that_make_no_sense_are_told(words, message, root, capsys):
    assert command(root, *words) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def twice_judged(tmp_path_factory, inputs):
    """A study by two judges, with its results."""
    root = tmp_path_factory.mktemp("twice")
    shutil.copytree(inputs, root, dirs_exist_ok=True)
    torch.manual_seed(9)
    save(tiny_classifier(), root / "second.safetensors")
    names = [f"classifier:{root / name}.safetensors" for name in ("judge", "second")]
    _, results = study(config(root, judge=",".join(names)))
    assert results is not None
    return root, names, results


def test_every_judge_sees_every_cell(twice_judged):
    root, names, results = twice_judged
    assert results.judge == names[0]
    assert [one.judge for one in results.others] == names[1:]
    lead, second = load(root / "judge.safetensors"), load(root / "second.safetensors")
    raw = results.cells[0]
    x = to_float(torch.from_numpy(np.load(root / "made.npz")["arr_0"].transpose(0, 3, 1, 2).copy()))
    with np.load(raw.arrays) as arrays:
        torch.testing.assert_close(lead.features(x), torch.from_numpy(arrays["features"]))
        torch.testing.assert_close(second.features(x), torch.from_numpy(arrays["features_2"]))
    assert set(raw.provenance.inputs) == {"images", "judge", "judge 2", "reference", "reference_images"}
    assert "--metrics fid,kid,is" in raw.provenance.command
    assert f"--reference {root}/real.npz" in raw.provenance.command


def test_the_kid_of_a_cell_is_that_of_its_command(twice_judged):
    root, names, results = twice_judged
    found = run_quality(
        QualityConfig(
            images=root / "made.npz",
            reference=root / "real.npz",
            features=names[0],
            metrics="kid",
            device="cpu",
            cache="none",
        )
    )
    assert results.cells[0].scores["kid"] == pytest.approx(found["kid"], rel=1e-6)


def test_the_results_have_each_cells_distance_by_every_judge(twice_judged):
    root, names, results = twice_judged
    cells = json.loads(json_text(digested(results, resamples=50)))["cells"]
    quality = partial(
        QualityConfig, images=root / "made.npz", reference=root / "real.npz", metrics="kid", device="cpu", cache="none"
    )
    for suffix, judge in zip(("", "_2"), names, strict=True):
        assert cells[0][f"kid{suffix}"] == pytest.approx(run_quality(quality(features=judge))["kid"], rel=1e-6)
        moved = cells[1][f"kid{suffix}"] - cells[0][f"kid{suffix}"]
        assert cells[1][f"less_raw{suffix}"] == pytest.approx(moved, rel=1e-6)
    assert cells[0]["kid"] != cells[0]["kid_2"]


def test_what_the_judges_do_not_agree_on_is_marked_and_said(twice_judged, tmp_path):
    _, _, results = twice_judged
    lowered = digested(results, resamples=50)
    row = lowered.sets[0].refined[0]
    way = Difference(-1.0, (-2.0, -0.5)), Difference(1.0, (0.5, 2.0)), Difference(0.1, (-0.1, 0.3))
    assert not replace(row, from_raw=way[0], opinions=(way[0],)).contested
    contested = [replace(row, from_raw=way[0], opinions=(other,)) for other in way[1:]]
    assert all(one.contested for one in contested)
    assert not replace(contested[0], from_raw=None).contested

    def with_one(other):
        rows = [replace(one, opinions=(one.from_raw,)) for one in lowered.sets[0].rows]
        rows[lowered.sets[0].rows.index(row)] = other
        return replace(lowered, sets=(replace(lowered.sets[0], rows=tuple(rows)),))

    digest = with_one(contested[0])
    said = summary_in_words(digest)["made"]
    assert (
        f"The judges disagree on {row.label}: significantly lower than raw by judge.safetensors, significantly " in said
    )
    assert "≠" in page_text(digest)
    assert r"$^{\neq}$" in latex_text(digest)
    assert "≠</span>" not in page_text(with_one(replace(row, opinions=(row.from_raw,))))


def test_real_images_of_another_size_are_refused(root, monkeypatch):
    class Resizes:
        name, dim, protocol, image_size = "inception-64", 64, "clean", None
        is_fid, spatial_dim, num_classes, source = False, None, None, Source("any", "ab")

    monkeypatch.setattr("eval.study.inputs.open_features", lambda *_, **__: Resizes())
    np.savez(root / "large.npz", arr_0=np.zeros((20, 24, 24, 3), np.uint8))
    changed = {"judge": "inception-64", "images": [{"name": "large", "path": str(root / "large.npz")}]}
    with pytest.raises(
        UserError, match=r"images\.large: images are 24x24, but the real ones, .*real\.npz, 16x16; give"
    ):
        open_inputs(config(root, **changed), torch.device("cpu"))


def test_the_judge_at_hand_is_taken_and_else_the_bundled_one(root, monkeypatch, capsys):
    monkeypatch.setattr("eval.study.inputs.judges_at_hand", lambda *_, **__: ())
    monkeypatch.setattr("eval.study.inputs.FALLBACK", f"classifier:{root / 'judge.safetensors'}")
    inputs = open_inputs(config(root, judge="auto"), torch.device("cpu"))
    assert [judge.features.name for judge in inputs.judges] == [f"classifier:{root / 'judge.safetensors'}"]
    assert f"judge: classifier:{root / 'judge.safetensors'}" in capsys.readouterr().err


def test_statistics_of_the_first_judge_give_way_to_images_for_the_others(root):
    torch.manual_seed(9)
    save(tiny_classifier(), root / "second.safetensors")
    first, second = (f"classifier:{root / name}.safetensors" for name in ("judge", "second"))
    run_statistics(StatisticsConfig(images=root / "real.npz", out=root / "stats.npz", features=first, device="cpu"))
    settings = {"judge": f"{first},{second}", "reference": str(root / "stats.npz")}
    inputs = open_inputs(config(root, **settings, reference_images=str(root / "real.npz")), torch.device("cpu"))
    assert [judge.reference.path.name for judge in inputs.judges] == ["stats.npz", "real.npz"]
    with pytest.raises(
        UserError, match=r"reference: .*stats\.npz: statistics of classifier:.*, but judge is classifier:"
    ):
        open_inputs(config(root, **settings), torch.device("cpu"))


@pytest.mark.parametrize("at_hand", [(), ("inception-768", "efficientnet-lite0-128")])
def test_of_statistics_alone_the_judge_is_the_one_they_are_of(root, monkeypatch, at_hand):
    monkeypatch.setattr("eval.study.inputs.judges_at_hand", lambda *_, **__: at_hand)
    judge = f"classifier:{root / 'judge.safetensors'}"
    statistics = root / "of_judge.npz"
    run_statistics(
        StatisticsConfig(images=root / "real.npz", features=judge, out=statistics, cache="none", device="cpu")
    )
    opened = open_inputs(config(root, judge="auto", reference=str(statistics)), torch.device("cpu"))
    assert [one.features.name for one in opened.judges] == [judge]
