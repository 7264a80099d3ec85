import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from refine.cli import main
from refine.studio.tabs import defaults
from refine.synthesis import Ball
from refine.synthesis.tasks.generate import SAMPLERS, TASK
from refine.synthesis.tasks.seeds import block_average
from robust_models import UserError, load, open_images, save
from robust_models.class_seeds import EMBEDDED, ClassSeeds
from robust_models.classifier import Generation
from robust_models.datasets import CIFAR10_CLASSES
from robust_models.mixture import RIDGE, Mixture, fit, log_likelihood
from robust_models.runtime.seeds import generator
from tests.tiny import CLASSES


def draws(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """[n,d] of correlated Gaussian numbers."""
    drawn = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=drawn, dtype=torch.float64) / d**0.5
    return 0.5 + 0.1 * torch.randn(n, d, generator=drawn, dtype=torch.float64) @ mixing


def two_clusters(n: int = 400, d: int = 6) -> torch.Tensor:
    x = draws(n, d)
    x[n // 4 :] += 2
    return x[torch.randperm(n, generator=torch.Generator().manual_seed(1))]


def run(*argv, task="generate", capsys):
    status = main(["--task", task, *map(str, argv)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.rsplit("\r", 1)[-1].strip()


def test_the_defaults_are_the_papers():
    assert TASK.defaults(32) == Ball(30, 0.5, 60)
    assert TASK.defaults(224) == Ball(40, 1, 60)


# Mixtures


def test_one_component_is_the_gaussian_of_mean_and_covariance():
    x = draws(200, 12)
    mixture = fit(x, 1, rank=12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.means[0], x.mean(0))
    torch.testing.assert_close(mixture.covariances[0], torch.cov(x.T, correction=0) + RIDGE * torch.eye(12))
    assert mixture.weights.tolist() == [1.0]


@pytest.mark.parametrize(("x", "components", "atol"), [(draws(400, 6), 1, 2e-3), (two_clusters(), 2, 0.07)])
def test_samples_have_the_fitted_mean_and_covariance(x, components, atol):
    mixture = fit(x, components, rank=3, generator=torch.Generator().manual_seed(0))
    drawn = torch.Generator().manual_seed(0)
    samples = torch.stack([mixture.sample(drawn) for _ in range(3000)])
    one = mixture.as_one()
    torch.testing.assert_close(samples.mean(0), one.means[0], rtol=0, atol=max(atol, 8e-3))
    torch.testing.assert_close(torch.cov(samples.T), one.covariances[0], rtol=0, atol=atol)


def test_a_mixture_as_one_gaussian_keeps_the_datas_moments():
    x = two_clusters()
    one = fit(x, 2, rank=6, generator=torch.Generator().manual_seed(0)).as_one()
    torch.testing.assert_close(one.means[0], x.mean(0))
    expected = torch.cov(x.T, correction=0) + RIDGE * torch.eye(6)
    torch.testing.assert_close(one.covariances[0], expected, rtol=0, atol=2e-3)


def test_two_clusters_are_found_and_fit_better_than_one_gaussian():
    x = two_clusters()
    one, two = (fit(x, k, rank=6, generator=torch.Generator().manual_seed(0)) for k in (1, 2))
    assert two.weights.sort().values.tolist() == pytest.approx([0.25, 0.75], abs=1e-6)
    assert two.means.mean(1).sort().values.tolist() == pytest.approx([0.5, 2.5], abs=0.05)
    assert log_likelihood(x, two) > log_likelihood(x, one) + 0.5
    torch.testing.assert_close(torch.tensor(log_likelihood(x, two.as_one())), torch.tensor(log_likelihood(x, one)),
                               rtol=0, atol=0.05)  # fmt: skip


def test_a_low_rank_keeps_the_trace_and_the_leading_directions():
    x = draws(300, 8)
    full, low = (fit(x, 1, rank=r, generator=torch.Generator().manual_seed(0)) for r in (8, 3))
    assert low.factors.shape == (1, 8, 3)
    torch.testing.assert_close(low.covariances[0].trace(), full.covariances[0].trace())
    values, vectors = torch.linalg.eigh(full.covariances[0])
    leading = vectors[:, -3:]
    torch.testing.assert_close(low.covariances[0] @ leading, leading * values[-3:])


def test_more_components_than_clusters_stay_finite():
    x = torch.zeros(20, 4, dtype=torch.float64)
    x[10:] = 1
    mixture = fit(x, 4, rank=4, generator=torch.Generator().manual_seed(0))
    assert all(values.isfinite().all() for values in (mixture.weights, mixture.means, mixture.factors, mixture.noise))


# Files of seeds


def one_gaussian(mean: float, d: int = 12) -> Mixture:
    return Mixture(
        torch.ones(1, dtype=torch.float64),
        torch.full((1, d), mean, dtype=torch.float64),
        0.05 * torch.eye(d, dtype=torch.float64)[None, :, :4],
        torch.tensor([1e-4], dtype=torch.float64),
    )


@pytest.fixture
def seeds(tmp_path):
    seeds = ClassSeeds(CLASSES, tuple(one_gaussian(mean) for mean in (0.2, 0.5, 0.8)), 2, 16, "made up")
    seeds.save(tmp_path / "tiny.seeds.npz")
    return tmp_path / "tiny.seeds.npz"


def test_a_seed_is_a_clamped_draw_in_blocks(seeds):
    loaded = ClassSeeds.load(seeds)
    assert (loaded.class_names, loaded.side, loaded.image_size, loaded.source) == (CLASSES, 2, 16, "made up")
    x = loaded.draw(2, torch.Generator().manual_seed(0))
    assert x.shape == (3, 16, 16)
    blocks = x.view(3, 2, 8, 2, 8).permute(0, 1, 3, 2, 4).flatten(3)
    assert (blocks == blocks[..., :1]).all()
    drawn = loaded.mixtures[2].sample(torch.Generator().manual_seed(0)).float().clamp(0, 1)
    assert torch.equal(blocks[..., 0].flatten(), drawn)
    assert abs(float(x.mean()) - 0.8) < 0.1
    bright = ClassSeeds(("a",), (one_gaussian(3.0),), 2, 4, "").draw(0, torch.Generator().manual_seed(0))
    assert (bright == 1).all()


def test_fitted_seeds_are_the_statistics_of_each_classs_block_averages(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    pixels = (
        rng.integers(0, 60, (120, 16, 16, 3)).astype(np.uint8) + (60 * labels).astype(np.uint8)[:, None, None, None]
    )
    names = np.array(CLASSES)
    np.savez(tmp_path / "train.npz", arr_0=pixels, arr_1=labels, class_names=names)
    out = tmp_path / "out.seeds.npz"
    flags = ["--data", tmp_path / "train.npz", "--out", out, "--components", 1, "--rank", 48, "--json"]
    status, printed, _ = run(*flags, task="seeds", capsys=capsys)
    assert status == 0
    assert json.loads(printed)["side"] == 4
    seeds = ClassSeeds.load(out)
    x = torch.from_numpy(pixels[labels == 1].transpose(0, 3, 1, 2).copy()).double() / 255
    x = block_average(x, 4)
    torch.testing.assert_close(seeds.mixtures[1].means[0], x.mean(0), rtol=0, atol=1e-3)
    expected = torch.cov(x.T, correction=0) + RIDGE * torch.eye(48)
    torch.testing.assert_close(seeds.mixtures[1].covariances[0], expected, rtol=0, atol=1e-5)
    assert "exists" in run(*flags, task="seeds", capsys=capsys)[2]


def test_block_averages():
    x = torch.rand(2, 3, 8, 8)
    expected = torch.stack([x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((2, 3)) for i in (0, 1) for j in (0, 1)])
    torch.testing.assert_close(block_average(x, 2), expected.permute(1, 2, 0).flatten(1))


def test_the_embedded_seeds_are_small_and_cifars():
    seeds = ClassSeeds.load(EMBEDDED)
    assert seeds.class_names == CIFAR10_CLASSES
    assert seeds.image_size == 32
    assert EMBEDDED.stat().st_size < 1.5 * 2**20
    frogs, planes = (
        torch.stack([seeds.draw(label, torch.Generator().manual_seed(i)) for i in range(50)]).mean((0, 2, 3))
        for label in (6, 0)
    )
    assert planes[2] > frogs[2] + 0.1  # the sky


# Generation


def test_images_are_balanced_labelled_and_start_at_their_seeds(checkpoint, seeds, tmp_path, capsys):
    out = tmp_path / "made.npz"
    flags = ["--ckpt", checkpoint, "--num-images", 7, "--out", out, "--eps", 0, "--seed", 5]
    assert run(*flags, "--steps", 1, capsys=capsys)[0] == 0
    made = open_images(out)
    assert made.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    loaded = ClassSeeds.load(seeds)  # found beside the checkpoint
    for i in range(7):
        expected = loaded.draw(i % 3, generator("cpu", 5, 3, i))
        assert (made.read(i, i + 1)[0].float() / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_an_image_depends_on_seed_and_number_alone(checkpoint, seeds, tmp_path, capsys):
    def made(name, *more):
        out = tmp_path / name
        flags = ["--ckpt", checkpoint, "--out", out, "--steps", 2, "--num-images", 5, *more]
        assert run(*flags, capsys=capsys)[0] == 0
        return open_images(out).read(0, 5)

    first = made("a.npz")
    assert torch.equal(first, made("b.npz", "--batch-size", 2))
    assert not torch.equal(first, made("c.npz", "--seed", 1))
    assert torch.equal(first, made("d.npz", "--mixture", "false"))  # a mixture of one is that one


@pytest.fixture
def generating(checkpoint, seeds):
    """The checkpoint of a classifier that was trained to generate by 3 steps of 0.25."""
    model = load(checkpoint)
    model.description = replace(model.description, generation=Generation(0.25, 3, -1.5))
    save(model, checkpoint)
    return checkpoint


def summary_of(*flags, capsys):
    status, printed, error = run(*flags, "--num-images", 4, "--json", capsys=capsys)
    assert status == 0, error
    return json.loads(printed)


def test_a_classifier_trained_to_generate_takes_its_own_steps_up_the_logit(generating, tmp_path, capsys):
    common = ["--ckpt", generating, "--precision", "fp32"]
    recorded = summary_of(*common, "--out", tmp_path / "a.npz", capsys=capsys)
    assert (recorded["step_size"], recorded["steps"]) == (0.25, 3)
    assert recorded["eps"] == pytest.approx((3 * 16 * 16) ** 0.5)  # as far as any image is from any other
    rows = [json.loads(line) for line in (tmp_path / "a.npz.manifest.jsonl").read_text().splitlines()]
    assert [row["target"] for row in rows] == [0, 1, 2, 0]
    model = load(generating)
    x = open_images(tmp_path / "a.npz").read(0, 4).float() / 255
    with torch.no_grad():
        logits = model(x)[range(4), [0, 1, 2, 0]]
    assert [row["objective_after"] for row in rows] == pytest.approx((-logits).tolist(), abs=1e-4)
    longer = summary_of(*common, "--out", tmp_path / "b.npz", "--steps", 5, "--objective", "ce", capsys=capsys)
    assert (longer["step_size"], longer["steps"]) == (0.25, 5)
    assert longer["objective_after"] > 0  # a cross-entropy
    plain = summary_of(*common, "--out", tmp_path / "c.npz", "--steps", 1, "--sampler", "momentum", capsys=capsys)
    assert plain["step_size"] == SAMPLERS["momentum"].step_size


def test_a_classifier_trained_to_generate_begins_where_it_learned_to(generating, tmp_path, capsys):
    common = ["--ckpt", generating, "--precision", "fp32"]

    def made(name, *more):
        summary_of(*common, "--out", tmp_path / name, *more, capsys=capsys)
        return open_images(tmp_path / name).read(0, 4)

    seeds, noise = made("a.npz"), made("b.npz", "--start-from", "noise")
    assert not torch.equal(seeds, noise)
    model = load(generating)
    for start, expected in (("noise", noise), ("images", seeds)):  # which images those were, nobody knows
        model.description = replace(model.description, generation=Generation(0.25, 3, -1.5, start))
        save(model, generating)
        assert torch.equal(made(f"{start}.npz"), expected)


def test_the_studio_begins_with_the_recorded_steps(generating, checkpoint):
    classifier = load(generating)
    found = defaults("generate", classifier)
    assert {(ball["step_size"], ball["steps"]) for ball in found.values()} == {(0.25, 3)}
    classifier.description = replace(classifier.description, generation=None)
    assert defaults("generate", classifier)["small"] == {"eps": 30, "step_size": 0.5, "steps": 60}


def test_a_file_without_a_record_keeps_the_papers_steps(checkpoint, seeds, tmp_path, capsys):
    found = summary_of("--ckpt", checkpoint, "--out", tmp_path / "a.npz", "--step-size", 0.1, capsys=capsys)
    assert (found["eps"], found["step_size"], found["steps"]) == (30, 0.1, 60)


@pytest.mark.parametrize("sampler", ["ascent", *SAMPLERS])
@pytest.mark.parametrize("start", ["seeds", "pca", "noise"])
def test_every_sampler_from_every_start_gives_an_image_by_its_number_alone(
    checkpoint, seeds, tmp_path, capsys, monkeypatch, sampler, start
):
    def made(name, *more):
        out = tmp_path / name
        flags = ["--ckpt", checkpoint, "--out", out, "--sampler", sampler, "--start-from", start, "--step-size", 0.05]
        assert run(*flags, "--steps", 3, "--precision", "fp32", *more, capsys=capsys)[0] == 0
        return open_images(out).read(0, 5)

    whole = made("a.npz", "--num-images", 5)
    assert torch.equal(whole, made("b.npz", "--num-images", 9))
    monkeypatch.setattr("refine.synthesis.run.block_size", lambda *_: 2)
    assert (whole.int() - made("c.npz", "--num-images", 5).int()).abs().max() <= 1  # rounding of another block
    assert not torch.equal(whole, made("d.npz", "--num-images", 5, "--seed", 1))


def test_generation_begins_at_any_image_set(checkpoint, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", arr_0=pixels)
    flags = ["--ckpt", checkpoint, "--start-from", tmp_path / "photos.npz", "--eps", 0, "--steps", 1, "--num-images", 6]
    assert run(*flags, "--out", tmp_path / "o.npz", capsys=capsys)[0] == 0
    made = open_images(tmp_path / "o.npz").read(0, 6).permute(0, 2, 3, 1).numpy()
    assert all(any(np.array_equal(image, photo) for photo in pixels) for image in made)


def test_chosen_classes(checkpoint, seeds, tmp_path, capsys):
    flags = ["--ckpt", checkpoint, "--num-images", 4, "--steps", 1]
    assert run(*flags, "--out", tmp_path / "o", "--classes", "Bird, 0", capsys=capsys)[0] == 0
    found = sorted(path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.png"))
    assert found == ["airplane/000001.png", "airplane/000003.png", "bird/000000.png", "bird/000002.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "brid"], "classes: class 'brid' is none of the classifier's 3 classes; did you mean bird?"),
        (["--classes", "zebra"], "(airplane, automobile, bird)"),
        (["--classes", "3"], "classes: class 3 is outside the classifier's 3 classes"),
        (["--classes", ","], "classes: ',' names none"),
        (["--num-images", "0"], "num_images: input should be greater than or equal to 1"),
        (["--sampler", "momentun"], "sampler: 'momentun' is none of ascent, momentum, langevin"),
        (["--objective", "l2"], "objective: 'l2' is none of ce, margin, log_odds, logit, energy"),
        (["--noise", "0.1"], "noise: 0.1 is for --sampler momentum or langevin; ascent adds none"),
        (["--momentum", "1"], "momentum: input should be less than 1"),
        (["--momentum", "0.5"], "momentum: 0.5 is for --sampler momentum; ascent has none"),
        (
            ["--seeds", "x.npz", "--start-from", "noise"],
            "seeds: x.npz is for --start-from seeds or pca; noise needs none",
        ),
        (["--start-from", "nothing.npz"], "nothing.npz: no such file"),
        (["--seeds", "nothing.npz"], "seeds: no file nothing.npz; bigroc refine --task seeds makes one"),
        (["--seeds", str(EMBEDDED)], "seeds: there are none for this classifier's classes (airplane, automobile, bird"),
    ],
)
def test_what_does_not_fit_is_one_line(checkpoint, seeds, tmp_path, flags, message, capsys):
    status, _, error = run("--ckpt", checkpoint, "--out", tmp_path / "o.npz", *flags, capsys=capsys)
    assert status == 2
    assert message in error
    assert "\n" not in error


def test_files_that_are_no_seeds_are_told(seeds, tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"images.npz is no file of seeds .*make one: --task seeds"):
        ClassSeeds.load(tmp_path / "images.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text.npz is no file of seeds"):
        ClassSeeds.load(tmp_path / "text.npz")
    with np.load(seeds) as file:
        arrays = {name: file[name] for name in file.files}
    for name, changed in (
        ("means", arrays["means"][:, :, :5]),
        ("weights", -arrays["weights"]),
        ("noise", arrays["noise"] * np.nan),
        ("image_size", np.array(15)),
        ("class_names", arrays["class_names"][:2]),
    ):
        np.savez(tmp_path / "broken.npz", **{**arrays, name: changed})
        with pytest.raises(UserError, match="holds arrays that do not fit"):
            ClassSeeds.load(tmp_path / "broken.npz")


def test_seeds_of_other_classes_are_told(checkpoint, tmp_path, capsys):
    ClassSeeds(("a", "b"), (one_gaussian(0.1), one_gaussian(0.2)), 2, 16, "").save(tmp_path / "ab.npz")
    flags = ["--ckpt", checkpoint, "--out", tmp_path / "o.npz", "--seeds", tmp_path / "ab.npz"]
    assert "is for 2 classes (a, b, ...), the classifier has 3" in run(*flags, capsys=capsys)[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--components", "20"], "data: class 0 has 32 images; 20 components need 40"),
        (["--side", "5"], "side: 5 is no divisor of the images' 16 pixels"),
        (["--out", "seeds.pt"], "out: seeds.pt is to end in .npz"),
    ],
)
def test_a_fit_that_cannot_be_is_told(tmp_path, flags, message, capsys):
    labels = np.arange(96) % 3
    np.savez(tmp_path / "train.npz", arr_0=np.zeros((96, 16, 16, 3), np.uint8), arr_1=labels)
    words = ["--data", tmp_path / "train.npz", "--out", tmp_path / "out.npz", *flags]
    status, _, error = run(*words, task="seeds", capsys=capsys)
    assert status == 2
    assert message in error
