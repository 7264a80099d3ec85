"""What all synthesis tasks share: the loop, the ball, whole sets in and out of files, pictures and messages."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic.dataclasses import dataclass

from refine.cli import main
from refine.synthesis import Ball, Network, Source, Task, Work, synthesize
from refine.synthesis.config import InputConfig
from refine.synthesis.inputs import find_targets, open_set, read
from refine.synthesis.loop import faithful_outside, iterates, stored, towards_class
from refine.synthesis.registry import TASKS, find_task
from refine.synthesis.run import synthesize_set
from robust_models import Description, RobustClassifier, UserError, open_images, to_float, to_u8
from robust_models.attacks import PGD, frozen_eval
from robust_models.images.image_set import Numbered
from robust_models.images.new_set import NewSet, write_new_set
from robust_models.runtime.config import STRICT
from tests.tiny import CLASSES, tiny_pixels

X = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def network(classifier):
    return Network(classifier)


def run(*argv, capsys):
    status = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.rsplit("\r", 1)[-1].strip()


# The loop


def test_the_loop_towards_a_class_is_targeted_pgd(network, classifier):
    expected = PGD(2.0, 0.5, 4, targeted=True)(classifier, X, Y)
    assert torch.equal(synthesize(network, Work(X, Y, towards_class), Ball(2.0, 0.5, 4)), expected)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_images_stay_in_the_box_and_in_the_ball_around_the_centre(network, norm):
    start = (X + 0.05).clamp(0, 1)
    eps = {"l2": 0.3, "linf": 0.02}[norm]
    x = synthesize(network, Work(start, Y, towards_class, center=X), Ball(eps, eps, 3, norm))
    gaps = (x - X).flatten(1)
    length = gaps.norm(dim=1) if norm == "l2" else gaps.abs().amax(dim=1)
    assert (length <= eps * 1.0001).all()
    assert (length > 0.5 * eps).all()
    assert 0 <= x.min() <= x.max() <= 1


def test_the_first_point_is_the_start_and_an_objective_of_its_own_falls(network):
    def redness(model, x, y):
        return -x[:, 0].flatten(1).sum(dim=1)

    points = list(iterates(network, Work(X, Y, redness), Ball(1.0, 0.1, 5)))
    assert len(points) == 6
    assert torch.equal(points[0], X)
    values = torch.stack([redness(None, x, Y) for x in points])
    assert (values.diff(dim=0) < 0).all()
    assert all(torch.equal(x[:, 1:], X[:, 1:]) for x in points)


def test_the_model_is_put_back_as_found(network, classifier):
    classifier.train()
    synthesize(network, Work(X, Y, towards_class), Ball(1.0, 0.5, 1))
    assert classifier.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in classifier.parameters())


def test_an_images_way_does_not_depend_on_its_neighbours_objective(network):
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4])

    def scaled(model, x, y):
        return weights[: len(x)] * towards_class(model, x, y)

    ball = Ball(1.0, 0.5, 3)
    together, plain = (synthesize(network, Work(X, Y, objective), ball) for objective in (scaled, towards_class))
    torch.testing.assert_close(together, plain, rtol=0, atol=1e-4)


def test_what_the_mask_excludes_is_the_originals_bit_for_bit():
    original = to_u8(X)
    mask = torch.zeros(5, 1, 16, 16)
    mask[:, :, 4:9, 2:7] = 1
    result = stored(1 - X, Work(X, Y, towards_class, keep_outside=mask, original_u8=original))
    inside = mask.bool().expand_as(result)
    assert torch.equal(result[~inside], original[~inside])
    assert torch.equal(result[inside], to_u8(1 - X)[inside])
    assert torch.equal(stored(X, Work(X, Y, towards_class)), original)


def test_the_fidelity_term_is_the_papers(network):
    mask = torch.zeros(5, 1, 16, 16)
    mask[..., :8] = 1
    objective = faithful_outside(lambda model, x, y: x.new_zeros(len(x)), X, mask, 10.0)
    x = X.clone()
    x[:, :, 3, 3] += 0.5  # inside
    x[1, 0, 0, 15] += 0.2  # outside
    x[1, 2, 5, 9] -= 0.1
    expected = torch.zeros(5)
    expected[1] = 10 * (0.2**2 + 0.1**2) / (3 * 16 * 16)
    torch.testing.assert_close(objective(network, x, Y), expected)


def test_features_come_through_the_resize(network, classifier):
    large = X.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        assert torch.equal(network.features(X), classifier.features(X))
        features = network.features(large)
        torch.testing.assert_close(classifier.head(features), network(large))


# A whole set


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BrightenConfig(InputConfig):
    weight: float = 1.0


def open_source(config, network):
    images = open_set(config, config.out)
    targets = find_targets(config, images, network)

    def work(rows):
        def objective(model, x, y):
            return towards_class(model, x, y) - config.weight * x.flatten(1).mean(dim=1)

        return Work(network.here(read(images, rows)), network.here(targets[rows]), objective)

    return Source(targets, images.size, work, lambda rows: to_u8(read(images, rows)), images.names)


BRIGHTEN = Task("brighten", "Make images brighter.", BrightenConfig, lambda side: Ball(2, 0.5, 4), open_source)


@pytest.fixture
def ten(tmp_path):
    path = tmp_path / "ten.npz"
    pixels, labels = tiny_pixels(10)
    np.savez(path, arr_0=pixels, arr_1=labels)
    return path


@pytest.fixture
def config(checkpoint, ten, tmp_path):
    return BrightenConfig(ckpt=str(checkpoint), input=ten, out=tmp_path / "out.npz", weight=50, device="cpu")


def test_a_new_task_of_forty_lines_works(config, network):
    summary = synthesize_set(BRIGHTEN, config)
    out, given = open_images(config.out), open_images(config.input)
    assert (summary["n"], summary["eps"], summary["step_size"], summary["steps"]) == (10, 2, 0.5, 4)
    assert np.array_equal(out.labels, given.labels)
    assert out.class_names == CLASSES
    x0, x = to_float(given.read(0, 10)), to_float(out.read(0, 10))
    assert (x.flatten(1).mean(1) > x0.flatten(1).mean(1)).all()
    rows = [json.loads(line) for line in (config.out.parent / "out.npz.manifest.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == list(given.names)
    assert [row["class"] for row in rows] == [CLASSES[label] for label in given.labels]
    with torch.no_grad():
        confidence = network(x).softmax(1)[range(10), given.labels]
        before = network(x0).softmax(1)[range(10), given.labels]
    values = torch.tensor([[row["confidence_before"], row["confidence_after"], row["distance"]] for row in rows])
    torch.testing.assert_close(values[:, 0], before, rtol=0, atol=1e-4)
    torch.testing.assert_close(values[:, 1], confidence, rtol=0, atol=1e-4)
    torch.testing.assert_close(values[:, 2], (x - x0).flatten(1).norm(dim=1), rtol=0, atol=1e-4)
    for row, p, image in zip(rows, confidence, x, strict=True):
        assert row["objective_after"] == pytest.approx(float(-p.log() - 50 * image.mean()), abs=1e-3)
        assert row["objective_after"] < row["objective_before"]
    assert summary["distance"] == pytest.approx(float(values[:, 2].mean()), abs=1e-3)


def test_the_batch_size_changes_nothing(config):
    first = synthesize_set(BRIGHTEN, config)
    with np.load(config.out) as file:
        one = file["arr_0"]
    second = synthesize_set(BRIGHTEN, replace(config, batch_size=3, overwrite=True))
    with np.load(config.out) as file:
        assert np.array_equal(one, file["arr_0"])
    assert first["objective_after"] == second["objective_after"]


def test_a_short_last_block_is_filled(config, monkeypatch):
    whole = synthesize_set(BRIGHTEN, config)
    seen = []
    monkeypatch.setattr("refine.synthesis.run.block_size", lambda *_: 4)
    task = replace(BRIGHTEN, open=lambda *given: _watched(open_source(*given), seen))
    blocks = synthesize_set(task, replace(config, overwrite=True))
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert blocks["objective_after"] == pytest.approx(whole["objective_after"], abs=1e-2)


def _watched(source, seen):
    def work(rows):
        seen.append(rows.tolist())
        return source.work(rows)

    return replace(source, work=work)


@pytest.mark.parametrize("name", ["o.npz", "o.npy", "o.pt", "o.tar", "o.parquet", "o"])
def test_every_kind_of_set_is_written_and_read(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    pixels, labels = tiny_pixels(10)
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with write_new_set(tmp_path / name, NewSet(labels, CLASSES, Numbered(10), (16, 16))) as add:
        for part in x.split(4):
            add(part)
    written = open_images(tmp_path / name)
    order = np.argsort(labels, kind="stable") if name == "o" else np.arange(10)  # a folder's order is its classes'
    assert torch.equal(written.read(0, 10), x[order])
    assert written.labels is None if name == "o.npy" else np.array_equal(written.labels, labels[order])
    assert written.class_names == (None if name in ("o.npy", "o.tar") else CLASSES)


def test_a_folder_keeps_its_names_below_its_classes(config, tmp_path):
    for name in ("bird/a.png", "bird/deep/b.png", "airplane/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny_pixels(1)[0][0]).save(tmp_path / "in" / name)
    given = replace(config, input=tmp_path / "in", out=tmp_path / "out")
    synthesize_set(BRIGHTEN, given)
    assert _files(tmp_path / "out") == ["airplane/a.png", "bird/a.png", "bird/deep/b.png"]
    synthesize_set(BRIGHTEN, replace(given, targets="class:automobile", overwrite=True))
    assert _files(tmp_path / "out") == [
        "automobile/airplane/a.png", "automobile/bird/a.png", "automobile/bird/deep/b.png",
    ]  # fmt: skip


def _files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


def test_a_failure_leaves_nothing(config):
    def fails(config, network):
        return replace(open_source(config, network), work=lambda rows: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        synthesize_set(replace(BRIGHTEN, open=fails), config)
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["ten.npz", "tiny.safetensors"]


def test_targets_given_guessed_and_named(config, network, ten):
    images = open_images(ten)
    x = to_float(images.read(0, 10))
    assert torch.equal(find_targets(config, images, network), torch.from_numpy(images.labels))
    guesses = find_targets(replace(config, targets="pseudo"), images, network)
    assert torch.equal(guesses, network(x).argmax(1))
    darker = find_targets(replace(config, targets="pseudo"), images, network, lambda rows: x[rows] / 8)
    assert torch.equal(darker, network(x / 8).argmax(1))
    assert find_targets(replace(config, targets="class:bird"), images, network).tolist() == [2] * 10


# The command


def test_pictures(config, tmp_path):
    pictures = {"grid": tmp_path / "grid.png", "trajectory": tmp_path / "way.gif"}
    summary = synthesize_set(BRIGHTEN, replace(config, **pictures, grid_images=3, trajectory_images=2))
    assert summary["grid"] == str(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 3 * 90
    with Image.open(tmp_path / "way.gif") as picture:
        assert picture.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]


def test_a_long_way_is_shown_at_a_dozen_of_its_steps(config, tmp_path):
    synthesize_set(BRIGHTEN, replace(config, steps=14, trajectory=tmp_path / "way.png", trajectory_images=2))
    with Image.open(tmp_path / "way.png") as picture:
        assert 12 * 96 < picture.height < 13 * 110


def test_help_names_the_tasks_flags(capsys):
    for task, flag in (("generate", "--num-images"), ("inpaint", "--rectangle"), ("superres", "--factor")):
        with pytest.raises(SystemExit):
            main(["--task", task, "--help"])
        told = capsys.readouterr().out
        assert flag in told
        assert f"bigroc refine --task {task}" in told


def test_without_a_task_and_with_task_refine_it_refines(capsys):
    for words in ([], ["--task", "refine"], ["--task=refine"]):
        error = run(*words, "--ckpt", "a", "--out", "b", "--eps", 1, capsys=capsys)[2]
        assert error.startswith("error: input: is required")


def test_dry_run_prints_the_resolved_config(capsys):
    words = [
        "--task=superres",
        "--ckpt",
        "cifar10-l2-small",
        "--input",
        "b",
        "--out",
        "c",
        "--factor",
        "4",
        "--dry-run",
    ]
    status, printed, _ = run(*words, "--dry-run", capsys=capsys)
    assert status == 0
    assert "factor: 4" in printed
    assert "start_from: nearest" in printed


def test_every_listed_task_is_there():
    for name in TASKS:
        assert find_task(name).name == f"bigroc refine --task {name}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "inpiant"], "task: 'inpiant' is none; did you mean inpaint?"),
        (["--task", "zzz"], "task: 'zzz' is none; there are refine, generate, inpaint"),
        (["--task"], "task: '' is none; there are refine"),
        (["--task", "superres", "--factr", "2"], "--factr: no such flag; did you mean --factor?"),
        (["--task", "superres", "--target", "cat"], "did you mean --targets?"),
    ],
)
def test_a_wrong_word_is_one_line(words, message, capsys):
    status, _, error = run(*words, capsys=capsys)
    assert status == 2
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": "linf"}, "eps: the default is for norm=l2; with norm=linf give both --eps and --step-size"),
        ({"norm": "linf", "eps": 0.1}, "step_size: the default is for norm=l2"),
        ({"targets": "class:brid"}, "class 'brid' is none of the classifier's 3 classes; did you mean bird"),
        ({"ckpt": "nothing.pt"}, "ckpt: no file nothing.pt"),
    ],
)
def test_what_does_not_fit_is_told(config, changed, message):
    with pytest.raises(UserError, match=message):
        synthesize_set(BRIGHTEN, replace(config, **changed))


def test_steps_that_nothing_bounds_need_no_radius(config):
    free = replace(config, norm="unconstrained", steps=7).ball(Ball(eps=4, step_size=0.5, steps=3))
    assert free == Ball(eps=math.inf, step_size=0.5, steps=7, norm="unconstrained")


def test_an_output_that_cannot_be_is_told(config, tmp_path):
    (tmp_path / "there.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"out: .*there.npz exists; remove it, choose another place, or pass --over"):
        synthesize_set(BRIGHTEN, replace(config, out=tmp_path / "there.npz"))
    with pytest.raises(UserError, match=r"out: .*image.png is the name of one image; name a folder or a file ending"):
        synthesize_set(BRIGHTEN, replace(config, out=tmp_path / "image.png"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match="is a folder; choose another place"):
        synthesize_set(BRIGHTEN, replace(config, out=tmp_path / "folder.npz", overwrite=True))


def test_an_output_in_the_input_is_told(config):
    with pytest.raises(UserError, match="overlaps the input"):
        synthesize_set(BRIGHTEN, replace(config, out=config.input, overwrite=True))


@pytest.mark.slow
def test_a_step_on_a_resnet50_at_224_pixels(tmp_path):
    classes = tuple(str(i) for i in range(1000))
    network = Network(RobustClassifier.from_description(Description("resnet50", classes, 224)).eval())
    x = torch.rand(1, 3, 224, 224)
    with frozen_eval(network):
        moved = synthesize(network, Work(x, torch.tensor([7]), towards_class), Ball(8, 1, 1))
    assert moved.shape == x.shape
    assert float((moved - x).norm()) == pytest.approx(1.0, abs=0.05)


OF_IMAGES = {  # the tasks that take images, with what else each needs
    "inpaint": ["--hole", "4", "--steps", "1"],
    "superres": ["--factor", "2", "--steps", "1"],
    "translate": ["--target-class", CLASSES[0], "--steps", "1"],
    "sketch": ["--target", CLASSES[0], "--steps", "1"],
    "paint": ["--feature", "1", "--rectangle", "0,0,4,4", "--steps", "1"],
    "invert": ["--steps", "1"],
    "explain": [],
    "counterfactual": ["--steps", "1"],
    "features": ["--out", "OUT.png"],
    "seeds": ["--data", "INPUT", "--out", "OUT.npz"],
}
ANY_SIZE = {"sketch"}  # which fits each drawing to the classifier


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kinds", ["sizes", "depths"])
def test_images_of_several_sizes_are_taken_or_refused_in_one_line_before_any_work(
    tmp_path, checkpoint, capsys, task, kinds
):
    if task not in OF_IMAGES:
        assert {"input", "data"}.isdisjoint(find_task(task).schema.__dataclass_fields__)
        return
    for i, name in enumerate(CLASSES[:2]):
        (tmp_path / "in" / name).mkdir(parents=True)
        size = (16 + 4 * i, 16) if kinds == "sizes" else (16, 16)
        image = Image.new("RGB", size, (9, 99, 199))
        if kinds == "depths" and i:
            image = Image.fromarray(np.full((16, 16), 999, np.uint16))
        image.save(tmp_path / "in" / name / "a.png")
    words = ["--task", task, *OF_IMAGES[task]]
    words += [] if task == "seeds" else ["--ckpt", str(checkpoint), "--input", "INPUT"]
    words += [] if "--out" in words else ["--out", "OUT"]
    words = [word.replace("INPUT", str(tmp_path / "in")).replace("OUT", str(tmp_path / "out")) for word in words]
    status, _, error = run(*words, capsys=capsys)
    if task in ANY_SIZE:
        assert status == 0, error
        return
    first, second = (f"{name}/a.png" for name in CLASSES[:2])
    found = f"{first} is 16x16, {second} is 20x16" if kinds == "sizes" else f"{first} is uint8, {second} is uint16"
    assert (status, error.count("\n")) == (2, 0)
    assert f"mixed {kinds}: {found}; " in error
    assert not list(tmp_path.glob("out*"))
