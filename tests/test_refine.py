import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import refine
from refine.cli import main
from robust_models import UserError, open_images, to_float, to_u8
from robust_models.labels import fit_labels
from tests.tiny import CLASSES, tiny_pixels

X = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])


def algorithm_1(model, x, y, eps, steps):
    """The paper's pseudo-code, as written, on parameters that collect gradients."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        F.cross_entropy(model(x + delta), y, reduction="sum").backward()
        gradient = delta.grad
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta.detach() - 1.5 * eps / steps * gradient / norm
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = torch.where(length > eps, delta * eps / length, delta)
    return (x + delta).clamp(0, 1)


@pytest.mark.parametrize("eps", [0.5, 3.0, 20.0])
def test_refine_is_algorithm_1(classifier, eps):
    expected = algorithm_1(classifier, X, Y, eps, 7)
    torch.testing.assert_close(refine.refine(classifier, X, Y, eps=eps), expected, rtol=0, atol=1e-5)


def test_without_labels_the_targets_are_the_models_own(classifier):
    y = classifier(X).argmax(1)
    assert torch.equal(refine.pseudo_labels(classifier.train(), X), y)
    assert classifier.training
    assert torch.equal(refine.refine(classifier, X, eps=1.0), refine.refine(classifier, X, y, eps=1.0))


def test_refinement_raises_the_confidence_in_the_target(classifier):
    before = classifier(X).softmax(1)[range(5), Y]
    after = classifier(refine.refine(classifier, X, Y, eps=1.0)).softmax(1)[range(5), Y]
    assert (after > before).all()


@pytest.fixture
def unlabelled_npz(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=tiny_pixels(10)[0])
    return path


def run(*argv, capsys):
    status = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.rsplit("\r", 1)[-1]


def test_npz_in_npz_out_with_labels_kept(checkpoint, labelled_npz, tmp_path, capsys):
    before = labelled_npz.read_bytes()
    out, grid = tmp_path / "out.npz", tmp_path / "grid.png"
    status, printed, _ = run(
        "--ckpt", checkpoint, "--input", labelled_npz, "--out", out, "--eps", 2, "--batch_size", 40,
        "--grid", grid, "--grid-images", 12, "--json", capsys=capsys,
    )  # fmt: skip
    assert status == 0
    summary = json.loads(printed)
    assert (summary["n"], summary["targets"], summary["eps"], summary["steps"]) == (96, "given", 2.0, 7)
    assert summary["step_size"] == pytest.approx(1.5 * 2 / 7)
    assert summary["confidence_after"] > summary["confidence_before"]
    assert 0 < summary["distance"] <= 2.05
    with np.load(out) as written, np.load(labelled_npz) as given:
        assert written["arr_0"].shape == given["arr_0"].shape
        assert np.array_equal(written["arr_1"], given["arr_1"])
        moved = np.linalg.norm((written["arr_0"] / 255.0 - given["arr_0"] / 255.0).reshape(96, -1), axis=1)
    assert moved.mean() == pytest.approx(summary["distance"], abs=1e-3)
    assert labelled_npz.read_bytes() == before
    with Image.open(grid) as picture:
        assert picture.width > 8 * 90


@pytest.mark.usefixtures("each_machine")
def test_command_and_function_agree(classifier, checkpoint, unlabelled_npz, tmp_path, capsys):
    out = tmp_path / "out.npz"
    flags = ["--ckpt", checkpoint, "--input", unlabelled_npz, "--out", out, "--precision", "fp32"]
    status, printed, _ = run(*flags, "--eps=1", capsys=capsys)
    assert status == 0
    assert "10 images refined towards pseudo-labels, l2 eps 1, 7 steps" in printed
    x = to_float(open_images(unlabelled_npz).read(0, 10))
    assert torch.equal(open_images(out).read(0, 10), to_u8(refine.refine(classifier, x, eps=1.0)))


def test_folder_in_folder_out_with_classes_matched_by_name(checkpoint, tmp_path, capsys):
    pixels, _ = tiny_pixels(4)
    for i, name in enumerate(["Bird/a.png", "Bird/b.jpg", "airplane/a.png", "airplane/deep/c.png"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(tmp_path / "in" / name)
    arguments = ["--ckpt", checkpoint, "--input", tmp_path / "in", "--out", tmp_path / "out", "--eps", 1]
    status, printed, _ = run(*arguments, capsys=capsys)
    assert status == 0
    assert "given labels" in printed
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["Bird/a.png", "Bird/b.jpg", "airplane/a.png", "airplane/deep/c.png"]
    status, again, _ = run(*arguments, capsys=capsys)
    assert status == 0
    assert again == f"already done, with the same settings:\n{printed}"
    status, _, error = run(*arguments[:-1], 2, capsys=capsys)
    assert status == 2
    assert "made with another eps (1.0 there, 2.0 now); choose another place, or pass --overwrite" in error
    assert run(*arguments, "--overwrite", capsys=capsys)[0] == 0


def test_images_of_another_size_are_refined_at_their_own(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", arr_0=rng.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8))
    status, printed, _ = run(
        "--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / "o.npz", "--eps", 4, "--json",
        capsys=capsys,
    )  # fmt: skip
    assert status == 0
    assert open_images(tmp_path / "o.npz").size == (20, 24)
    summary = json.loads(printed)
    assert summary["confidence_after"] > summary["confidence_before"]


def test_an_unreadable_image_is_fatal_or_skipped_as_asked(checkpoint, tmp_path, capsys):
    pixels, _ = tiny_pixels(3)
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.fromarray(pixels[i]).save(tmp_path / "in" / f"{i}.png")
    broken = tmp_path / "in" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    arguments = ["--ckpt", checkpoint, "--input", tmp_path / "in", "--out", tmp_path / "out", "--eps", 1]
    status, printed, error = run(*arguments, capsys=capsys)
    assert (status, printed) == (2, "")
    assert "1.png: cannot be decoded" in error
    assert not (tmp_path / "out").exists()
    status = main([str(word) for word in [*arguments, "--on-error", "skip"]])
    captured = capsys.readouterr()
    assert status == 0
    assert f"skipped: {broken}: cannot be decoded" in captured.err
    assert "1 unreadable images skipped" in captured.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "2.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--eps": "-1"}, "eps: input should be greater than or equal to 0; got -1"),
        ({"--norm": "linf", "--eps": "8"}, "eps: 8 is outside [0, 1] for norm=linf"),
        ({"--ckpt": "nowhere"}, "ckpt: no file nowhere"),
        ({"--input": "nowhere.npz"}, "nowhere.npz: no such file or folder"),
        ({"--targets": "given"}, "has no labels"),
        ({"--targets": "best"}, "targets: 'best' is none of given, pseudo, debiased, balanced, class:NAME, or a .csv"),
        (
            {"--targets": "class:brid"},
            "targets: class 'brid' is none of the classifier's 3 classes; did you mean bird?",
        ),
        (
            {"--targets": "pseudo", "--prior": "1,1,2"},
            "prior: '1,1,2' is for --targets balanced; this run's targets are",
        ),
        ({"--targets": "balanced", "--prior": "1,1,2"}, "prior: '1,1,2' is neither uniform nor a CSV or JSON file"),
        ({"--eps": "auto"}, "eps: auto needs --reference REAL_IMAGES"),
        ({"--eps": "automatic"}, "eps: "),
        ({"--uncertain": "50"}, "uncertain: input should be less than or equal to 1; got 50"),
        ({"--center": "middle"}, "center: 'middle' is none of input, first_step"),
        ({"--out": "refined.tar"}, "out: refined.tar ends in .tar, but the images are npz"),
        ({"--device": "abacus"}, "device: 'abacus' cannot be used here"),
        ({"--epz": "1"}, "--epz: no such flag; did you mean --eps?"),
        ({"--loss": "log-odds"}, "loss: 'log-odds' is none of ce, margin, log_odds, logit, energy; did you mean log_"),
        ({"--norm": "unconstrained", "--eps": "3"}, "eps: 3 bounds nothing for norm=unconstrained; write eps=.inf"),
        ({"--norm": "unconstrained", "--eps": ".inf"}, "step_size: norm=unconstrained has no radius to derive it from"),
        ({"--eps": ".inf"}, "eps: inf is no radius for norm=l2; give a number, or norm=unconstrained"),
        ({"--targets": "nowhere.csv"}, "targets: nowhere.csv cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(checkpoint, unlabelled_npz, tmp_path, capsys, change, message):
    out = tmp_path / "out.npz"
    flags = {"--ckpt": checkpoint, "--input": unlabelled_npz, "--out": out, "--eps": "1", **change}
    status, printed, error = run(*(word for pair in flags.items() for word in pair), capsys=capsys)
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz", "tiny.safetensors"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss", "foo"], "loss: 'foo' is none of ce, margin, log_odds"),
        (["--norm", "linf", "--eps", "8"], "eps: 8 is outside [0, 1] for norm=linf"),
        (["--norm", "L2"], "norm: 'L2' is none of l2, linf, l1, l1.5, fourier, unconstrained; did you mean l2?"),
        (["--targets", "labels.json"], "targets: labels.json cannot be read (No such file or directory)"),
        (["--targets", "/dev/null.csv"], "targets: /dev/null.csv cannot be read"),
        (["--targets", "balanced", "--prior", "p.csv"], "prior: p.csv cannot be read (No such file or directory)"),
        (["--eps", "auto", "--norm", "l1"], "eps: auto knows where to begin for l2, linf; give a number for norm=l1"),
        (["--task", "superres", "--norm", "l3", "--factor", "2"], "norm: 'l3' is none of l2, linf, l1, l1.5, fourier"),
        (["--task", "invert", "--targets", "balanced"], "targets: 'balanced' is none of given, pseudo, class:NAME"),
        (["--task", "invert", "--targets", "labels.csv"], "targets: labels.csv cannot be read (No such file or"),
        (["--task", "invert", "--norm", "l1", "--eps", ".inf"], "eps: inf is no radius for norm=l1"),
    ],
)
def test_values_are_checked_in_a_dry_run_too(flags, message, capsys):
    words = ["--ckpt", "a", "--input", "b", "--out", "c", "--dry-run"]
    eps = [] if "--task" in flags or "--eps" in flags else ["--eps", 1]
    status, printed, error = run(*flags, *words, *eps, capsys=capsys)
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_without_a_ball_images_move_by_their_steps_and_do_not_become_black(
    checkpoint, unlabelled_npz, tmp_path, capsys
):
    out = tmp_path / "o.npz"
    flags = ["--norm", "unconstrained", "--eps", ".inf", "--step-size", 0.5, "--steps", 3]
    status, printed, _ = run("--ckpt", checkpoint, "--input", unlabelled_npz, "--out", out, *flags, capsys=capsys)
    assert status == 0
    assert "unconstrained eps inf, 3 steps" in printed
    moved = to_float(open_images(out).read(0, 10)) - to_float(open_images(unlabelled_npz).read(0, 10))
    lengths = moved.flatten(1).norm(dim=1)
    assert (lengths < 1.6).all()
    assert (lengths > 0.4).all()


def test_labels_that_fit_no_class_are_named(checkpoint, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", arr_0=tiny_pixels(2)[0], arr_1=np.array([0, 7]))
    status, _, error = run(
        "--ckpt", checkpoint, "--input", tmp_path / "in.npz", "--out", tmp_path / "o.npz", "--eps", 1, capsys=capsys
    )
    assert status == 2
    assert "labels run from 0 to 7, but the classifier has 3 classes (0 to 2)" in error


def test_an_output_around_or_inside_the_input_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(tiny_pixels(1)[0][0]).save(tmp_path / "in" / "a.png")
    for out in (tmp_path / "in", tmp_path / "in" / "out", tmp_path):
        status, _, error = run(
            "--ckpt", checkpoint, "--input", tmp_path / "in", "--out", out, "--eps", 1, "--overwrite", capsys=capsys
        )
        assert status == 2
        assert "overlaps the input" in error
    assert (tmp_path / "in" / "a.png").exists()


def test_labels_are_matched_by_name_or_taken_as_indices():
    labels = np.array([0, 1, 1])
    assert fit_labels(labels, ["bird", "Airplane"], CLASSES, source="set").tolist() == [2, 0, 0]
    assert fit_labels(labels, ["0", "2"], CLASSES, source="set").tolist() == [0, 2, 2]
    assert fit_labels(labels, None, CLASSES, source="set").tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"set: class 'cow' is none of the classifier's 3 classes \(airplane, "):
        fit_labels(labels, ["cow", "bird"], CLASSES, source="set")


def test_anyones_checkpoint_refines_with_its_architecture_and_normaliser(classifier, tmp_path, unlabelled_npz, capsys):
    torch.save({"state_dict": classifier.network.state_dict()}, tmp_path / "foreign.pt")
    flags = ["--ckpt", tmp_path / "foreign.pt", "--input", unlabelled_npz, "--out", tmp_path / "o.npz", "--eps", 1]
    arch = ["--arch", "preact_resnet10_w16", "--normalize", "cifar10", "--json"]
    status, printed, _ = run(*flags, *arch, capsys=capsys)
    assert status == 0
    summary = json.loads(printed)
    assert summary["confidence_after"] > summary["confidence_before"]
    status, _, error = run(*flags, "--overwrite", *arch[2:3], "mnist", capsys=capsys)
    assert status == 2
    assert "normalize: 'mnist' is none of none, cifar10, imagenet" in error


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photos"])
def test_the_input_may_come_first_without_its_flag(checkpoint, tmp_path, name, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    source = tmp_path / name
    file = source if source.suffix else source / "one.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(file)
    out = tmp_path / f"better{source.suffix}"
    status, _, _ = run(source, "--out", out, "--ckpt", checkpoint, "--eps", "1", "--targets", "pseudo", capsys=capsys)
    assert status == 0
    assert open_images(out).size == (24, 40)
    status, _, error = run("--out", out, source, "--ckpt", checkpoint, "--eps", "1", capsys=capsys)
    assert (status, "no such argument" in error) == (2, True)
