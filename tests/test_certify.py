"""Randomized smoothing: certificates against an independent count, the smoothed classifier, training under noise."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, norm
from torch import nn

from eval.certify.config import CertifyConfig
from eval.certify.journal import FORMAT, Journal
from eval.certify.run import noise_like, run_certify
from eval.certify.smoothed_votes import ABSTAIN, Certificate, certify, greatest_radius, lower_bound, predict, radius_of
from eval.cli import main
from robust_models import PGD, UserError, load, save
from robust_models.attacks import cross_entropy, gradient_and_loss
from robust_models.checkpoints.flags import CheckpointFlags, reading
from robust_models.images import to_float
from robust_models.runtime.config import resolve
from robust_models.runtime.seeds import EVALUATION, generator
from robust_models.smoothing import Smoothed, UnderNoise
from tests.test_distributed import finish, start
from tests.tiny import CLASSES, tiny_classifier, tiny_pixels
from train.config import TrainConfig
from train.loop import train
from train.objectives import CrossEntropy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(tiny_classifier(), tmp_path / "net.safetensors")
    pixels, labels = tiny_pixels(12)
    np.savez(tmp_path / "data.npz", arr_0=pixels, arr_1=labels, class_names=np.array(CLASSES))
    return tmp_path


def config(root: Path, **changed) -> CertifyConfig:
    values = {"sigma": 0.25, "n0": 10, "n": 60, "batch_size": 25, "device": "cpu"}
    return CertifyConfig(ckpt=str(root / "net.safetensors"), data=str(root / "data.npz"), **{**values, **changed})


def kept(state: Path) -> dict[int, Certificate]:
    x_u8 = torch.from_numpy(tiny_pixels(12)[0]).permute(0, 3, 1, 2)
    with Journal(state, {}, x_u8.contiguous()) as journal:
        return journal.found


class HalfSpace(nn.Module):
    """Class 1 where the first pixel is above `edge`: its smoothed radius at x is |x - edge| exactly."""

    def __init__(self, edge: float):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        margin = x[:, 0, 0, 0] - self.edge
        return torch.stack([-margin, margin], dim=1)


@pytest.mark.parametrize(("votes", "n", "alpha"), [(60, 60, 0.001), (41, 60, 0.05), (1, 60, 0.01), (0, 60, 0.01)])
def test_the_bound_is_clopper_and_pearsons(votes, n, alpha):
    two_sided = binomtest(votes, n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact")
    assert lower_bound(votes, n, alpha) == pytest.approx(two_sided.low, abs=1e-9)


@pytest.mark.parametrize(("n", "times"), [(100, 1.500), (1000, 2.463), (10_000, 3.199), (100_000, 3.811)])
def test_what_a_unanimous_vote_certifies(n, times):
    assert greatest_radius(n, 1.0, 0.001) == pytest.approx(times, abs=1e-3)


def test_certificates_equal_an_independent_count_on_the_same_noise(root):
    found = run_certify(config(root, state=root / "state.jsonl"))
    model, pixels, labels = load(root / "net.safetensors"), *tiny_pixels(12)
    certificates = kept(root / "state.jsonl")
    radii = []
    for k in range(12):
        x = to_float(torch.from_numpy(pixels[k]).permute(2, 0, 1))
        draws = generator("cpu", 0, EVALUATION, k)
        with torch.no_grad():
            answers = [int(model((x + 0.25 * torch.randn(x.shape, generator=draws))[None]).argmax()) for _ in range(70)]
        chosen = np.bincount(answers[:10], minlength=3).argmax()
        count = answers[10:].count(chosen)
        low = binomtest(count, 60).proportion_ci(confidence_level=0.998, method="exact").low
        radius = 0.25 * norm.ppf(low) if low > 0.5 else 0.0
        assert certificates[k].votes == count
        assert certificates[k].guess == (chosen if low > 0.5 else ABSTAIN)
        assert certificates[k].radius == pytest.approx(radius, rel=1e-6)
        radii.append(radius if low > 0.5 and chosen == labels[k] else -1)
    at_zero = found["certified"][0]
    assert at_zero["radius"] == 0
    assert at_zero["accuracy"] == pytest.approx(np.mean(np.array(radii) > 0))
    assert found["average_certified_radius"] == pytest.approx(np.clip(radii, 0, None).mean())


def test_a_half_space_is_certified_to_its_edge_and_not_beyond():
    edges, radii = (0.1, 0.2, 0.3, 0.45), []
    for i, edge in enumerate(edges):
        x = torch.full((3, 4, 4), 0.5)
        draw = noise_like(x, generator("cpu", 0, EVALUATION, i))
        found = certify(HalfSpace(edge), x, 0.25, draw, n0=50, n=4000, alpha=0.001, batch_size=500)
        radii.append(found.radius)
        exact = 0.5 - edge
        assert found.radius <= exact
        assert found.guess == (1 if found.radius > 0 else ABSTAIN)
    assert radii[1] == pytest.approx(0.3, rel=0.1)


def test_a_level_vote_abstains():
    assert predict(np.array([1, 90, 9]), 0.001) == 1
    assert predict(np.array([1, 55, 44]), 0.001) == ABSTAIN
    assert radius_of(30, 60, 0.25, 0.001) == 0


def test_batch_size_changes_nothing_and_a_state_goes_on(root):
    whole = run_certify(config(root, state=root / "whole.jsonl"))
    other = run_certify(config(root, batch_size=7, state=root / "state.jsonl"))
    assert other["certified"] == whole["certified"]
    lines = (root / "state.jsonl").read_text().splitlines(keepends=True)
    (root / "state.jsonl").write_text("".join(lines[:6]) + lines[6][:20])  # stopped in the middle of a line
    again = run_certify(config(root, state=root / "state.jsonl"))
    assert again["certified"] == whole["certified"]
    assert kept(root / "state.jsonl") == kept(root / "whole.jsonl")


def test_ranks_share_the_images_and_go_on_from_one_state(root):
    whole = run_certify(config(root, state=root / "whole.jsonl"))
    lines = (root / "whole.jsonl").read_text().splitlines(keepends=True)
    (root / "state.jsonl").write_text("".join(lines[:4]))
    words = ["--ckpt", root / "net.safetensors", "--data", root / "data.npz", "--sigma", 0.25, "--n0", 10, "--n", 60]
    words += ["--batch-size", 25, "--device", "cpu", "--state", root / "state.jsonl", "--json"]
    ended = finish(start("-m", "eval", "certify", *words, world=2))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert json.loads(ended[0][1])["certified"] == whole["certified"]
    assert ended[1][1] == ""
    assert kept(root / "state.jsonl") == kept(root / "whole.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}\n", "is not a state that certify wrote"),
        ("no json\n", "is not a state that certify wrote"),
        (json.dumps({"format": FORMAT, "checkpoint": "0"}) + "\n", "another run: checkpoint was 0"),
    ],
)
def test_a_foreign_state_is_refused(root, content, message):
    (root / "state.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        run_certify(config(root, state=root / "state.jsonl"))
    assert (root / "state.jsonl").read_text() == content


def test_a_state_of_other_images_is_refused_whatever_the_file_is_called(root):
    state = root / "state.jsonl"
    run_certify(config(root, state=state, limit=2))
    (root / "again").mkdir()
    shutil.copy(root / "data.npz", root / "again" / "same.npz")
    found = run_certify(replace(config(root, state=state, limit=4), data=str(root / "again" / "same.npz")))
    assert found["images"] == 4
    assert [json.loads(line)["image"] for line in state.read_text().splitlines()[1:]] == [0, 1, 2, 3]
    pixels, labels = tiny_pixels(12, seed=7)
    np.savez(root / "data.npz", arr_0=pixels, arr_1=labels, class_names=np.array(CLASSES))
    before = state.read_text()
    with pytest.raises(UserError, match=r"certificates of other images \(number 0 is another one here\)"):
        run_certify(config(root, state=state))
    assert state.read_text() == before


def test_a_damaged_line_is_named_and_nothing_is_lost(root):
    state = root / "state.jsonl"
    run_certify(config(root, state=state, limit=4))
    lines = state.read_text().splitlines(keepends=True)
    for damage in ("{broken\n", "{}\n", '{"image": 1}\n', "7\n"):
        state.write_text("".join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(UserError, match="damaged at line 3; remove that line"):
            run_certify(config(root, state=state, limit=4))
    state.write_text("".join([*lines[:2], *lines[3:]]))
    run_certify(config(root, state=state, limit=4))
    assert sorted(state.read_text().splitlines()) == sorted("".join(lines).splitlines())


@pytest.mark.parametrize("plot", ["file/c.png", "file/new/c.png", "/proc/c.png"])
def test_a_place_for_no_plot_is_told_before_any_work(root, plot, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setattr("eval.certify.run.load_classifier", lambda *_: pytest.fail("worked"))
    with pytest.raises(UserError, match=r"plot: .*cannot be written"):
        run_certify(config(root, plot=root / plot))
    assert sorted(path.name for path in root.iterdir()) == ["data.npz", "file", "net.safetensors"]


def test_what_is_wrong_is_one_line(root, capsys):
    words = ["certify", "--ckpt", str(root / "net.safetensors"), "--data", str(root / "data.npz")]
    assert main(words) == 2
    assert "sigma: the classifier's file names no noise" in capsys.readouterr().err
    assert main([*words, "--sigma", "0.25", "--smoothing", "0.25"]) == 2
    assert "certify adds the noise itself" in capsys.readouterr().err
    assert main([*words, "--sigma", "0.25", "--n0", "5", "--n", "20", "--plot", str(root / "curve.svg")]) == 0
    out, err = capsys.readouterr()
    assert "radius 0.25  certified accuracy" in out
    assert "20 samples certify radii below" in err
    assert (root / "curve.svg").stat().st_size > 1000


def test_a_smoothed_classifier_is_the_mean_soft_max_and_its_gradient():
    base = tiny_classifier()
    model = Smoothed(base, 0.2, draws=5, seed=3)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 0])
    noise = 0.2 * torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    mean = torch.stack([base(x + one).softmax(1) for one in noise]).mean(0)
    torch.testing.assert_close(model(x), mean.log())
    gradient, loss = gradient_and_loss(model, x, y)
    x_leaf = x.clone().requires_grad_()
    by_hand = -torch.stack([base(x_leaf + one).softmax(1) for one in noise]).mean(0).log().gather(1, y[:, None])[:, 0]
    (expected,) = torch.autograd.grad(by_hand.sum(), x_leaf)
    torch.testing.assert_close(loss, by_hand.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    alone = model(x[2:3])
    torch.testing.assert_close(alone, model(x)[2:3])  # whatever lies beside it
    assert model.features(x).shape == base.features(x).shape


def test_any_command_may_smooth_its_classifier(root):
    model = load(root / "net.safetensors", smoothing=0.3, smoothing_draws=4)
    assert isinstance(model, Smoothed)
    assert (model.sigma, model.draws) == (0.3, 4)
    with pytest.raises(UserError, match="smoothing_draws: 4 is for --smoothing, which is not given"):
        CheckpointFlags(smoothing_draws=4).load(str(root / "net.safetensors"))
    flags = ["--smoothing", "0.3", "--smoothing-draws", "4", "--device", "cpu"]
    from refine.cli import main as refine

    words = ["--ckpt", str(root / "net.safetensors"), "--input", str(root / "data.npz"), "--eps", "0.5"]
    outs = {size: root / f"{size}.npz" for size in (2, 12)}
    for size, out in outs.items():
        assert refine([*words, *flags, "--out", str(out), "--batch-size", str(size)]) == 0
    plain = root / "plain.npz"
    assert refine([*words, "--device", "cpu", "--out", str(plain)]) == 0
    images = {name: np.load(out)["arr_0"] for name, out in {**outs, "plain": plain}.items()}
    assert np.array_equal(images[2], images[12])
    assert not np.array_equal(images[2], images["plain"])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\n", b"no state\n", None])
def test_what_is_no_state_is_one_line_and_stays(root, content):
    state = root / "state"
    state.mkdir() if content is None else state.write_bytes(content)
    with pytest.raises(UserError, match="is not a state that certify wrote"):
        run_certify(config(root, state=state))
    assert state.is_dir() if content is None else state.read_bytes() == content


def test_a_plot_replaces_none_but_a_plot(root):
    (root / "mine.svg").write_text("<svg>mine</svg>")
    (root / "folder.png").mkdir()
    for name, message in (
        ("mine.svg", "is no plot that this program made"),
        ("folder.png", "is no plot that this program made"),
        ("plot", r"ends in none of \.png, \.svg, \.pdf"),
        ("plot.npz", r"ends in none of \.png, \.svg, \.pdf"),
    ):
        with pytest.raises(UserError, match=message):
            run_certify(config(root, plot=root / name))
    assert (root / "mine.svg").read_text() == "<svg>mine</svg>"
    for suffix in ("png", "svg", "pdf"):
        for _ in range(2):
            run_certify(config(root, n0=2, n=5, limit=2, plot=root / f"plot.{suffix}"))


@pytest.mark.parametrize(
    ("sigma", "draws", "message"), [(0, 1, "sigma: 0"), (-1, 1, "sigma: -1"), (0.1, 0, "draws: 0")]
)
def test_noise_that_is_none_is_said(sigma, draws, message):
    with pytest.raises(UserError, match=message):
        Smoothed(tiny_classifier(), sigma, draws)


def test_one_noise_is_cohens_training_and_more_are_smooth_advs():
    base, y = tiny_classifier(), torch.tensor([0, 1, 2, 1])
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = 0.25 * torch.randn(4, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loss, _ = CrossEntropy().loss(UnderNoise(base, noise[:, :1]), x, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(base(x + noise[:, 0]), y))
    attack = PGD(0.5, 0.25, 2)
    x_adv = CrossEntropy().attacked(UnderNoise(base, noise), attack, x, y, torch.Generator())
    by_hand = x.clone()
    for _ in range(2):  # -log of the mean soft-max of the class, by unit steps
        by_hand.requires_grad_()
        probability = torch.stack([base(by_hand + noise[:, i]).softmax(1) for i in range(3)]).mean(0)
        (gradient,) = torch.autograd.grad(-probability.gather(1, y[:, None]).log().sum(), by_hand)
        step = 0.25 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        by_hand = (by_hand + step).detach()
        change = by_hand - x
        by_hand = x + change * (0.5 / change.flatten(1).norm(dim=1).clamp_min(0.5)).view(-1, 1, 1, 1)
        by_hand = by_hand.clamp(0, 1)
    torch.testing.assert_close(x_adv, by_hand, rtol=1e-3, atol=1e-4)
    assert bool((cross_entropy(UnderNoise(base, noise)(x_adv), y) > cross_entropy(UnderNoise(base, noise)(x), y)).all())


def recipe(root: Path, out: str, **changed) -> TrainConfig:
    values = {
        "out": str(root / out),
        "arch": "preact_resnet10_w8",
        "epochs": 2,
        "batch_size": 4,
        "device": "cpu",
        "precision": "fp32",
        "data": {"path": str(root / "data.npz"), "validation": 4},
        "attack": {"eps": 0.25, "step_size": 0.25, "steps": 1},
        "smoothing": {"sigma": 0.25, "draws": 2},
        "optimizer": {"lr": 0.05, "schedule": "cosine"},
        "validate": {"steps": 1},
    }
    return resolve(TrainConfig, {**values, **changed}, {})


def test_training_under_noise_says_so_and_certify_takes_its_sigma(root):
    summary = train(recipe(root, "noisy"))
    assert {"noisy_accuracy", "robust_accuracy"} < summary["validation"].keys()
    trained = load(root / "noisy" / "classifier.safetensors")
    assert trained.description.recipe["smoothing"] == {"sigma": 0.25, "draws": 2}
    again = train(recipe(root, "again"))
    assert again["validation"] == summary["validation"]
    plain = train(recipe(root, "plain", smoothing={"sigma": 0.0}))
    assert "clean_accuracy" in plain["validation"]
    found = run_certify(
        CertifyConfig(
            ckpt=str(root / "noisy" / "classifier.safetensors"), data=str(root / "data.npz"), n0=5, n=20, device="cpu"
        )
    )
    assert found["sigma"] == 0.25
    assert math.isclose(found["greatest_radius"], 0.25 * norm.ppf(0.001 ** (1 / 20)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objective": {"name": "energy"}, "init": "cifar10-l2-small"}, r"smoothing\.sigma: does not go with"),
        ({"init": "cifar10-l2-small", "init_reading": {"smoothing": 0.1}}, r"init_reading\.smoothing: init's weights"),
        ({"smoothing": {"sigma": -1}}, r"smoothing\.sigma"),
    ],
)
def test_noise_that_does_not_fit_training_is_one_line(root, changed, message):
    with pytest.raises(UserError, match=message):
        recipe(root, "out", **changed)


def test_what_a_file_without_noise_is_read_as_is_what_it_was_before_there_was_noise():
    """States and studies of earlier releases are gone on with: a flag that does nothing is not among their settings."""
    plain, smoothed = reading(CheckpointFlags()), reading(CheckpointFlags(smoothing=0.25))
    assert "smoothing_draws" not in plain
    assert plain["smoothing"] is None
    assert (smoothed["smoothing"], smoothed["smoothing_draws"]) == (0.25, 16)
