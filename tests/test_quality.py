"""python -m eval quality: several metrics of one pass, references of every kind, the cache, ranks, what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.cli import main
from eval.quality import collect as collecting
from robust_models import UserError, open_images
from robust_models.checkpoints.flags import Source
from robust_models.features import open_features
from robust_models.metrics import (
    FrechetReference,
    FrechetStatistics,
    Resampler,
    distance_interval,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    read_statistics,
)
from tests.test_distributed import finish, start
from tests.tiny import tiny_pixels


class Pooled:
    """A feature space of 12 averages, of which the sFID's are 3, and 4 logits; counts its images."""

    name, dim, protocol, image_size, is_fid = "inception", 12, "tf", None, True
    spatial_dim, num_classes = 3, 4

    def __init__(self, protocol: str = "tf", sha256: str = "67") -> None:
        self.protocol, self.source = protocol, Source("weights.pth", sha256)
        self.seen = 0

    def __call__(self, x_u8: Tensor) -> Tensor:
        return self.with_spatial(x_u8)[0]

    def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
        self.seen += len(x_u8)
        x = x_u8.float() / 255
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), x[:, :, 0, 0]

    def logits(self, features: Tensor) -> Tensor | None:
        return 20 * features[:, :4]


@pytest.fixture
def pooled(monkeypatch) -> Pooled:
    made = Pooled()
    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: made)
    return made


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch) -> Path:
    """a.npz (60 labelled images) and b.npz (80) in the current folder; caches in cache/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, n, seed in (("a", 60, 0), ("b", 80, 1)):
        x, y = tiny_pixels(n, seed)
        np.savez(tmp_path / f"{name}.npz", arr_0=x, arr_1=y)
    return tmp_path


def run(capsys, words: str) -> tuple[int, dict, str]:
    status = main([*words.split(), "--device", "cpu", "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else {}, err


QUALITY = "quality --images a.npz --reference b.npz"


def features_of(name: str) -> Tensor:
    images = open_images(name)
    return Pooled()(images.read(0, len(images)))


def statistics(features: Tensor) -> FrechetStatistics:
    found = FrechetStatistics(features.shape[1])
    found.update(features)
    return found


def test_several_metrics_come_from_one_pass(pooled, capsys):
    status, found, _ = run(capsys, f"{QUALITY} --metrics fid,is,kid,prc,sfid --batch-size 7 --cache none")
    assert status == 0
    assert pooled.seen == 140
    a, b = features_of("a.npz"), features_of("b.npz")
    assert found["fid"] == found["frechet"] == pytest.approx(frechet_distance(statistics(a), statistics(b)), rel=1e-9)
    assert found["kid"] == pytest.approx(kernel_distance(a, b)[0], rel=1e-9)
    assert found["kid_subsets"] == [1, 60]
    assert (found["precision"], found["recall"]) == precision_recall(a, b)
    assert 1 < found["inception_score"] < inception_score(20 * a[:, :4])
    assert found["inception_score_splits"] == 10
    assert found["sfid"] > 0
    assert (found["n_images"], found["n_reference"]) == (60, 80)
    assert found["versions"]["torch"] == torch.__version__
    assert found["weights"] == {"name": "weights.pth", "sha256": "67"}


def test_intervals_come_with_every_number_that_has_one_and_hold_it(pooled, capsys):
    words = f"{QUALITY} --metrics fid,is,kid,prc,density-coverage,sfid --intervals 50 --per-class"
    status, found, _ = run(capsys, words)
    assert status == 0
    for name in ("frechet", "inception_score", "kid", "precision", "recall", "density", "coverage"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high, name
    assert found["per_class"]
    for one in found["per_class"].values():
        assert one["frechet_interval"][0] <= one["frechet"] <= one["frechet_interval"][1]
    assert "sfid_interval" not in found


def test_words_name_every_number_with_what_it_depends_on(pooled, capsys):
    assert main([*f"{QUALITY} --metrics fid,is,kid,prc,sfid --intervals 50 --infinite --per-class".split()]) == 0
    out = capsys.readouterr().out
    for part in (
        "FID, the Frechet distance in inception (12-d, protocol tf): ",
        "95 %: what other sets of 60 images would score against this reference",
        "extrapolated to infinitely many images: ",
        "over 10 splits",
        "(one estimate from all images; a spread needs more than 1000)",
        "k = 3, 80 real images",
        "sFID (first 7 channels of mixed_6",
        "N = 60 (a.npz) against N = 80 (b.npz)",
        "sha256 67",
    ):
        assert part in out


def test_the_inception_score_needs_no_reference(pooled, capsys):
    status, found, _ = run(capsys, "quality --images a.npz --metrics is")
    assert (status, found["reference"], found["n_reference"]) == (0, None, None)
    assert "frechet" not in found
    assert pooled.seen == 60


def test_adm_splits_in_blocks_and_takes_its_reference_batch_apart(monkeypatch, capsys, sets):
    adm = Pooled("adm")
    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: adm)
    x, _ = tiny_pixels(80, 1)
    mu, mu_s = np.zeros(12), np.ones(3)
    batch = {"mu": mu, "sigma": np.eye(12), "mu_s": mu_s, "sigma_s": np.eye(3)}
    np.savez(sets / "virtual.npz", arr_0=x, **batch)
    words = "quality --images a.npz --reference virtual.npz --metrics fid,sfid,prc,is"
    status, found, _ = run(capsys, words)
    assert status == 0
    assert adm.seen == 140
    a = features_of("a.npz")
    virtual = read_statistics("virtual.npz")
    assert virtual is not None
    assert virtual.spatial is not None
    assert found["fid"] == pytest.approx(frechet_distance(statistics(a), virtual), rel=1e-9)
    spatial = Pooled().with_spatial(open_images("a.npz").read(0, 60))[1]
    assert spatial is not None
    assert found["sfid"] == pytest.approx(frechet_distance(statistics(spatial), virtual.spatial), rel=1e-9)
    assert (found["precision"], found["recall"]) == precision_recall(a, features_of("b.npz"))
    assert found["inception_score_splits"] == 1  # one block of 5,000
    assert found["inception_score"] == pytest.approx(inception_score(20 * a[:, :4]), rel=1e-9)
    assert found["n_reference"] is None


def test_our_statistics_hold_the_sfids_and_fit_protocols_of_the_same_pixels(pooled, capsys, monkeypatch):
    direct = run(capsys, f"{QUALITY} --metrics fid,sfid")[1]
    assert run(capsys, "statistics --images b.npz --out stats.npz")[0] == 0
    stored = run(capsys, "quality --images a.npz --reference stats.npz --metrics fid,sfid")[1]
    for key in ("fid", "sfid"):
        assert stored[key] == pytest.approx(direct[key], rel=1e-9)
    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: Pooled("adm"))
    assert run(capsys, "quality --images a.npz --reference stats.npz")[1]["fid"] == pytest.approx(direct["fid"])
    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: Pooled("clean"))
    status, _, err = run(capsys, "quality --images a.npz --reference stats.npz")
    assert (status, "statistics of protocol tf, but this is clean" in err) == (2, True)


def test_each_class_is_compared_with_its_own(pooled, capsys):
    found = run(capsys, f"{QUALITY} --per-class")[1]["per_class"]
    with np.load("a.npz") as a, np.load("b.npz") as b:
        ours, theirs = a["arr_1"], b["arr_1"]
    assert set(found) == {"0", "1", "2"}
    for label in range(3):
        expected = frechet_distance(
            statistics(features_of("a.npz")[torch.from_numpy(ours == label)]),
            statistics(features_of("b.npz")[torch.from_numpy(theirs == label)]),
        )
        assert found[str(label)]["frechet"] == pytest.approx(expected, rel=1e-9)
        assert found[str(label)]["n_images"] == (ours == label).sum()


@pytest.mark.parametrize(("n", "dim"), [(40, 6), (12, 30)])
def test_resampled_distances_are_those_of_the_resampled_set(n, dim):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, dim)) + 0.5
    reference = FrechetReference(statistics(torch.from_numpy(rng.standard_normal((200, dim)))))
    index = rng.integers(0, n, n)
    found = Resampler(rows, reference).distance(np.bincount(index, minlength=n))
    assert found == pytest.approx(reference.distance(statistics(torch.from_numpy(rows[index]))), rel=1e-7)


def test_an_interval_holds_the_distance_and_narrows_with_n():
    rng = np.random.default_rng(1)
    reference = FrechetReference(statistics(torch.from_numpy(rng.standard_normal((2000, 4)))))
    widths = []
    for n in (50, 1000):
        rows = rng.standard_normal((n, 4)) + 1
        low, high = distance_interval(Resampler(rows, reference), 100)
        assert low < reference.distance(statistics(torch.from_numpy(rows))) < high
        assert distance_interval(Resampler(rows, reference), 100) == (low, high)  # seeded
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_the_extrapolation_takes_off_the_bias_of_few_images():
    rng = np.random.default_rng(2)
    dim = 50
    reference = FrechetReference(statistics(torch.from_numpy(rng.standard_normal((100_000, dim)))))
    rows = rng.standard_normal((1000, dim)) + 0.1
    truth = 0.01 * dim
    found = Resampler(rows, reference).extrapolated()
    plain = reference.distance(statistics(torch.from_numpy(rows)))
    assert (found.sizes[0], found.sizes[-1]) == (250, 1000)
    assert found.distances[-1] == pytest.approx(plain, rel=1e-9)
    assert plain > 2 * truth  # 1,000 images are few for 50 features
    assert abs(found.value - truth) < (plain - truth) / 3


def test_statistics_are_the_same_bits_however_batched():
    rows = torch.randn(3000, 5, dtype=torch.float64)
    found = []
    for size in (1, 7, 1024, 3000):
        one = FrechetStatistics(5)
        for part in rows.split(size):
            one.update(part)
        found.append((one.mean, one.covariance))
    for mean, covariance in found[1:]:
        np.testing.assert_array_equal(mean, found[0][0])
        np.testing.assert_array_equal(covariance, found[0][1])


def test_few_samples_are_compared_through_themselves_to_the_same_number():
    rows = [torch.randn(n, 40, dtype=torch.float64) + shift for n, shift in ((12, 0), (17, 1), (300, 0.5))]
    sets = [statistics(part) for part in rows]
    assert [one.samples is not None for one in sets] == [True, True, False]

    class Moments:
        def __init__(self, found: FrechetStatistics) -> None:
            self.mean, self.covariance = found.mean, found.covariance

    for a in sets:
        for b in sets:
            plain = frechet_distance(Moments(a), Moments(b))
            assert frechet_distance(a, b) == pytest.approx(plain, rel=1e-7, abs=1e-7)


def test_memory_does_not_grow_with_the_images():
    found = FrechetStatistics(64)
    sizes = []
    for _ in range(6):
        found.update(np.random.default_rng(0).standard_normal((1024, 64)))
        sizes.append(sum(array.nbytes for array in found.as_arrays().values()))
    assert sizes[1:] == sizes[1:2] * 5


def test_the_cache_spares_the_network_and_a_changed_pixel_never_hits_it(pooled, capsys, sets):
    words = f"{QUALITY} --metrics fid,is,kid,sfid --cache kept"
    first = run(capsys, words)[1]
    assert pooled.seen == 140
    again = run(capsys, words)[1]
    assert pooled.seen == 140
    for key in ("fid", "inception_score", "kid", "sfid"):
        assert again[key] == first[key]
    (sets / "a.npz").rename(sets / "moved.npz")
    run(capsys, words.replace("a.npz", "moved.npz"))
    assert pooled.seen == 140  # the pixels count, not their place
    x, y = tiny_pixels(60, 0)
    x[59, 0, 0, 0] ^= 1
    np.savez(sets / "moved.npz", arr_0=x, arr_1=y)
    changed = run(capsys, words.replace("a.npz", "moved.npz"))[1]
    assert pooled.seen == 200
    assert changed["fid"] != first["fid"]


def test_too_few_images_to_extrapolate_are_told_before_any_is_looked_at(pooled, capsys):
    np.savez("few.npz", arr_0=tiny_pixels(59, 0)[0])
    status, _, err = run(capsys, f"{QUALITY.replace('a.npz', 'few.npz')} --infinite")
    assert (status, pooled.seen) == (2, 0)
    too_few = (
        "infinite: 59 images are too few to extrapolate a distance in 12 features; it needs 60 (5 for each feature)"
    )
    assert err == f"error: {too_few}\n"


def test_the_cache_knows_the_network_and_the_protocol(monkeypatch, capsys):
    for other in (Pooled(), Pooled(sha256="68"), Pooled(protocol="clean")):
        monkeypatch.setattr("eval.quality.run.open_features", lambda *_, made=other, **__: made)
        run(capsys, f"{QUALITY} --cache kept")
        assert other.seen == 140


def test_a_broken_cache_file_is_computed_anew(pooled, capsys, sets):
    first = run(capsys, f"{QUALITY} --cache kept")[1]
    for file in (sets / "kept").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert run(capsys, f"{QUALITY} --cache kept")[1]["fid"] == first["fid"]
    assert pooled.seen == 280


def test_the_default_cache_is_the_users(pooled, capsys, sets):
    run(capsys, QUALITY)
    assert len(list((sets / "cache" / "bigroc" / "quality").rglob("*.npz"))) == 2


def test_an_image_that_cannot_be_read_ahead_raises(pooled):
    def broken():
        yield 1
        raise UserError("gone")

    found = collecting._ahead(broken())
    assert next(found) == 1
    with pytest.raises(UserError, match="gone"):
        next(found)


def test_ranks_share_the_images_and_the_first_tells_the_same_numbers(checkpoint, capsys, sets, monkeypatch):
    paths = f"quality --images {sets / 'a.npz'} --reference {sets / 'b.npz'} --features classifier:{checkpoint}"
    words = f"{paths} --metrics fid,is,kid,prc --batch-size 8 --cache none"
    status, alone, _ = run(capsys, words)
    assert status == 0
    monkeypatch.chdir(Path(__file__).parents[1])
    first, second = finish(start("-m", "eval", *words.split(), "--device", "cpu", "--json"))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert second[1:] == ("", "")
    together = json.loads(first[1])
    for key in ("frechet", "inception_score", "inception_score_std", "kid"):
        assert together[key] == pytest.approx(alone[key], rel=1e-9)
    assert (together["precision"], together["recall"]) == (alone["precision"], alone["recall"])


def test_dinov2_without_its_weights_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "timm", sys)
    with pytest.raises(UserError, match=r"weights of DINOv2 are not on this machine; download https://.*dinov2_vitl14"):
        open_features("dinov2")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'dinov2 needs timm .*pip install "bigroc\[zoo\]"'):
        open_features("dinov2")


BAD = [
    ("--metrics fidd", "did you mean fid?"),
    ("--metrics is --infinite", "infinite: is of the Frechet distance; add fid to --metrics"),
    ("--metrics sfid,vendi --intervals 100", "intervals: none for sfid, vendi; leave it out"),
    ("--intervals 1", "intervals: 1 half splits are too few to see a spread; give 50 or more"),
    ("--protocol torch", "protocol: 'torch' is none of pytorch-fid, tf, clean, adm"),
    ("--features inception-77", "features: 'inception-77' is none of"),
    ("--features classifier:x --protocol tf", "protocol: belongs to the Inception network"),
    ("--weights absent.pth", "weights: no file absent.pth"),
    ("--reference null", "reference: needed by every metric but is"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_words_are_one_line_and_status_2(capsys, words, message):
    pytest.importorskip("torch_fidelity")
    status, found, err = run(capsys, f"{QUALITY} {words}")
    assert (status, found) == (2, {})
    assert message in err
    assert err.count("\n") == 1


def _images(n: int = 5, side: int = 16, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros((n, side, side, 3), dtype)


BAD_SETS = [
    ({"arr_0": _images(5, 24)}, "", "images: 24x24, but the reference has 16x16; bring both to one size first"),
    ({"arr_0": _images(5, dtype=np.uint16)}, "", "images are uint16; scores are of 8-bit images"),
    ({"arr_0": _images(5, dtype=np.float32)}, "", "images are float32; scores are of 8-bit images"),
    ({"arr_0": _images(1)}, "", "1 image; a Frechet distance needs at least 2"),
    ({"arr_0": _images(0)}, "", "with N > 0"),
    ({"arr_0": _images(3)}, "--metrics prc", "prc needs more than 3 images in each set, got 3 and 80"),
    ({"arr_0": _images(5)}, "--per-class", "per_class: images has no labels"),
    ({"arr_0": _images(2), "arr_1": np.arange(2)}, "--per-class", "per_class: class 2 is only in the reference"),
    ({"mu": np.zeros(12), "sigma": np.eye(12)}, "--metrics is", "holds statistics only; is needs the images"),
    ({"mu": np.zeros(12), "sigma": np.eye(12)}, "--intervals 90", "holds statistics only; intervals needs the images"),
    ({"mu": np.zeros(12), "sigma": np.eye(12)}, "--metrics sfid", "holds no mu_s and sigma_s, which sfid needs"),
    ({"mu": np.zeros(9), "sigma": np.eye(9)}, "", "statistics of 9 features; inception has 12"),
]


@pytest.mark.parametrize(("arrays", "words", "message"), BAD_SETS)
def test_bad_sets_are_one_line_and_status_2(pooled, capsys, sets, arrays, words, message):
    np.savez(sets / "bad.npz", **arrays)
    status, found, err = run(capsys, f"{QUALITY} --images bad.npz {words} --cache none")
    assert (status, found) == (2, {})
    assert message in err.splitlines()[-1]


def test_features_that_are_not_finite_name_the_image(monkeypatch, capsys):
    class Broken(Pooled):
        def with_spatial(self, x_u8: Tensor) -> tuple[Tensor, Tensor | None]:
            features, spatial = super().with_spatial(x_u8)
            features[3] = torch.nan
            return features, spatial

    monkeypatch.setattr("eval.quality.run.open_features", lambda *_, **__: Broken())
    status, _, err = run(capsys, f"{QUALITY} --cache none")
    assert (status, "features of image 3 are not finite" in err) == (2, True)
