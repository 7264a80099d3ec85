"""Metrics of few images, of duplicates, far from the origin; statistics that are none; the cache at its limits."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.cli import main
from eval.quality import cache as caching
from eval.quality.metric import Options, Side
from eval.quality.metrics import METRICS
from robust_models import UserError
from robust_models.metrics import (
    FrechetReference,
    FrechetStatistics,
    Resampler,
    kernel_distance,
    precision_recall,
    read_statistics,
)
from tests.test_quality import QUALITY, Pooled, pooled, run, sets  # noqa: F401  (fixtures)
from tests.tiny import tiny_pixels


def normal(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def by_differences(points: torch.Tensor, manifold: torch.Tensor, k: int = 3) -> float:
    """The share covered, from float64 differences alone."""
    points, manifold = points.double(), manifold.double()
    own = ((manifold[:, None] - manifold) ** 2).sum(-1).sort(dim=1).values[:, k]
    return float((((points[:, None] - manifold) ** 2).sum(-1) <= own).any(dim=1).double().mean())


FEATURES = {
    "plain": (normal(60, 8, 0), normal(70, 8, 1)),
    "a large mean": (normal(60, 8, 0) + 1e4, normal(70, 8, 1) + 1e4),
    "one far feature": (normal(60, 8, 0) * torch.tensor([1e5] + [1.0] * 7), normal(70, 8, 1)),
    "duplicates in the reference": (normal(60, 64, 0), normal(10, 64, 1).repeat(6, 1)),
    "duplicates across": (normal(40, 64, 0), torch.cat([normal(40, 64, 0)[:7], normal(30, 64, 1)])),
    "all duplicates of one": (normal(50, 16, 2), normal(1, 16, 3).repeat(30, 1)),
    "tiny": (normal(40, 8, 0) * 1e-6 + 1, normal(50, 8, 1) * 1e-6 + 1),
}


@pytest.mark.parametrize(("features", "reference"), FEATURES.values(), ids=FEATURES)
def test_precision_and_recall_are_those_of_exact_distances(features, reference):
    assert precision_recall(features, reference) == (
        pytest.approx(by_differences(features, reference)),
        pytest.approx(by_differences(reference, features)),
    )


@pytest.mark.parametrize("n", [2, 30, 100])
def test_the_kernel_distance_of_few_images_is_one_estimate_without_a_spread(n):
    a, b = normal(n, 6, 0), normal(n, 6, 1)
    value, spread = kernel_distance(a, b, subset_size=100)
    assert np.isnan(spread)
    every = kernel_distance(a, b, subsets=3, subset_size=n + 1)[0]
    assert value == pytest.approx(every)
    _, spread = kernel_distance(normal(n + 40, 6, 0), normal(n + 40, 6, 1), subset_size=n)
    assert spread > 1e-6 or n == 2


def test_few_images_are_said_in_words_and_json(pooled, capsys, sets):  # noqa: F811
    words = "quality --images a.npz --reference a.npz --metrics kid --cache none"
    found = run(capsys, words)[1]
    assert (found["kid_std"], found["kid_subsets"]) == (None, [1, 60])
    assert main([*words.split(), "--device", "cpu"]) == 0
    assert "one estimate from all images; a spread needs more than 1000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "reference", "subset", "drawn", "words"),
    [
        (40, 60, 50, ["reference"], "100 subsets of 40 drawn from the reference; each has the whole of the images"),
        (60, 40, 50, ["images"], "100 subsets of 40 drawn from the images; each has the whole of the reference"),
        (50, 90, 50, ["reference"], "100 subsets of 50 drawn from the reference"),
        (60, 70, 50, ["images", "reference"], "(100 subsets of 50)"),
    ],
)
def test_what_a_kernel_distances_spread_is_of(monkeypatch, images, reference, subset, drawn, words):
    monkeypatch.setattr("eval.quality.metrics.SUBSET_SIZE", subset)
    monkeypatch.setattr(kernel_distance, "__kwdefaults__", {"subsets": 100, "subset_size": subset})
    features = SimpleNamespace(name="classifier:x", protocol="pixels/255")
    sides = [Side(rows=normal(n, 6, seed)) for seed, n in enumerate((images, reference))]
    found = METRICS["kid"].compute(*sides, features, Options(("kid",)))
    assert found["kid_drawn_from"] == drawn
    assert words in METRICS["kid"].lines({**found, "features": "x", "dim": 6, "protocol": "y"})[0]


@pytest.mark.parametrize("n", [2, 10, 19])
def test_the_inception_score_of_splits_of_one_image_is_refused(pooled, capsys, sets, n):  # noqa: F811
    np.savez(sets / "few.npz", arr_0=tiny_pixels(n, 0)[0])
    status, _, err = run(capsys, "quality --images few.npz --metrics is --cache none")
    assert (status, f"few.npz has {n}" in err) == (2, True)


@pytest.mark.parametrize(("n", "dim"), [(100, 64), (319, 64), (2, 1)])
def test_an_extrapolation_from_too_few_images_is_refused(n, dim):
    reference = FrechetReference(FrechetStatistics.of(normal(500, dim, 0)))
    with pytest.raises(UserError, match=f"infinite: {n} images are too few"):
        Resampler(normal(n, dim, 1), reference).extrapolated()


def test_the_limits_standard_error_holds_the_truth():
    """Of 20 sets from the reference's own distribution, whose distance is 0: about 95 % within two standard errors."""
    dim = 8
    reference = FrechetReference(FrechetStatistics.of(normal(200_000, dim, 0).double()))
    found = [Resampler(normal(400, dim, seed).double(), reference).extrapolated() for seed in range(1, 21)]
    assert all(one.error > 0 for one in found)
    assert sum(abs(one.value) <= 2.5 * one.error for one in found) >= 16


# ------------------------------------------------------------------------------------------------- files of statistics


def covariance(dim: int = 6) -> np.ndarray:
    rows = normal(50, dim, 0).numpy().astype(np.float64)
    return np.cov(rows, rowvar=False)


GOOD = {
    "float64": covariance(),
    "float32": covariance().astype(np.float32),
    "singular": np.diag([1.0, 1, 1, 0, 0, 0]),
    "zero": np.zeros((6, 6)),
    "singular in float32": np.cov(normal(4, 6, 0).numpy(), rowvar=False).astype(np.float32),
}
BAD = {
    "negated": (-covariance(), "negative eigenvalues"),
    "an upper triangle": (np.triu(covariance() + 1), "not symmetric"),
    "one negative direction": (np.diag([1.0, 1, 1, 1, 1, -0.2]), "negative eigenvalues"),
    "a correlation above 1": (np.eye(6) + 2 * np.eye(6, k=1) + 2 * np.eye(6, k=-1), "negative eigenvalues"),
}


@pytest.mark.parametrize("sigma", GOOD.values(), ids=GOOD)
def test_covariances_are_taken(tmp_path, sigma):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(6), sigma=sigma)
    assert read_statistics(tmp_path / "stats.npz") is not None


@pytest.mark.parametrize(("sigma", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["sigma", "sigma_s"])
def test_matrices_that_are_no_covariances_are_refused(tmp_path, sigma, message, name):
    arrays = {"mu": np.zeros(6), "sigma": np.eye(6), "mu_s": np.zeros(6), "sigma_s": np.eye(6), name: sigma}
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError, match=f"stats.npz: {name} .*{message}"):
        read_statistics(tmp_path / "stats.npz")


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt"])
def test_pickled_statistics_are_named_with_the_way_out(tmp_path, suffix):
    path = tmp_path / f"stats{suffix}"
    content = {"mu": np.zeros(6), "sigma": np.eye(6)}
    if suffix == ".pt":
        torch.save({name: torch.from_numpy(value) for name, value in content.items()}, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"a pickle of mu and sigma, .*numpy.savez"):
        read_statistics(path)


# ------------------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("first", ["fid", "is", "sfid", "fid,is,kid,prc,sfid"])
def test_a_second_metric_costs_no_second_pass(pooled, capsys, first):  # noqa: F811
    names = ("fid", "fid,prc", "prc,kid", "is", "sfid")
    fresh = {name: run(capsys, f"{QUALITY} --metrics {name} --cache none")[1] for name in names}
    pooled.seen = 0
    run(capsys, f"{QUALITY} --metrics {first} --cache kept")
    if first == "is":  # of one set only
        run(capsys, f"{QUALITY} --metrics kid --cache kept")
    assert pooled.seen == 140
    for name in names:
        again = run(capsys, f"{QUALITY} --metrics {name} --cache kept")[1]
        for key in ("fid", "kid", "precision", "recall", "inception_score", "sfid"):
            assert again.get(key) == fresh[name].get(key)
    assert pooled.seen == 140


@pytest.mark.parametrize("place", ["/dev/null", "file", "file/below", "/proc/nothing"])
def test_a_cache_that_cannot_be_written_is_a_warning(pooled, capsys, sets, place):  # noqa: F811
    (sets / "file").write_text("not a folder")
    status, found, err = run(capsys, f"{QUALITY} --cache {place}")
    assert (status, found["fid"] > 0) == (0, True)
    assert "warning: cache: not kept" in err


def test_what_was_used_least_recently_goes_when_the_cache_is_full(pooled, capsys, sets, monkeypatch):  # noqa: F811
    run(capsys, f"{QUALITY} --cache kept")
    files = sorted((sets / "kept").rglob("*.npz"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 2
    monkeypatch.setattr(caching, "MOST_BYTES", sum(file.stat().st_size for file in files))
    np.savez(sets / "c.npz", arr_0=tiny_pixels(60, 5)[0])
    (files[1].parent / "gone.npz").symlink_to("nowhere")  # as if another process had removed it after the listing
    run(capsys, "quality --images c.npz --reference b.npz --cache kept")
    left = [file for file in (sets / "kept").rglob("*.npz") if not file.is_symlink()]
    assert len(left) < 3
    assert files[0] not in left
    assert sum(file.stat().st_size for file in left) <= caching.MOST_BYTES
    pooled.seen = 0
    assert json.dumps(run(capsys, "quality --images c.npz --reference c.npz --cache kept")[1])
    assert pooled.seen == 0


def test_sets_whose_features_are_too_large_keep_their_statistics_only(monkeypatch, capsys, sets):  # noqa: F811
    other = Pooled()
    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: other)
    monkeypatch.setattr("eval.quality.collect.MOST_ROW_BYTES", 100)
    first = run(capsys, f"{QUALITY} --cache kept")[1]
    assert run(capsys, f"{QUALITY} --cache kept")[1]["fid"] == first["fid"]
    assert other.seen == 140
