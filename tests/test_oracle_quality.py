"""The field's packages on the same images and weights: features, distances and scores to the last digits.

Random weights stand for the real ones: what is compared is the way from pixels to a number.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.cli import main
from robust_models.features import inception_weights, open_features, protocols
from robust_models.metrics import (
    FrechetStatistics,
    ScoreStatistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from robust_models.metrics.density_coverage import density_coverage
from robust_models.metrics.inception_score import blocks, shuffled_splits
from robust_models.metrics.vendi import vendi_score
from robust_models.runtime.files import sha256_of
from tests.inception import write_random_weights

ORACLES = Path(__file__).parents[1] / ".venv" / "oracles" / "quality"


def oracle(name: str) -> ModuleType:
    """A module of a package that is not a dependency."""
    if str(ORACLES) not in sys.path:
        sys.path.append(str(ORACLES))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{error}; `make oracles` installs it")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    oracle("torch_fidelity")
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    write_random_weights(path)
    return path


@pytest.fixture(autouse=True)
def _accepted(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "weights" in request.fixturenames:
        monkeypatch.setattr(inception_weights, "WHOLE", sha256_of(request.getfixturevalue("weights")))


def pixels(n: int, side: int = 32, seed: int = 0, high: int = 256) -> Tensor:
    """Smooth and rough images [n,3,side,side]."""
    draws = torch.Generator().manual_seed(seed)
    rough = torch.randint(0, high, (n, 3, side, side), generator=draws, dtype=torch.uint8)
    smooth = torch.linspace(0, high - 1, side).expand(n, 3, side, side).to(torch.uint8)
    return torch.where(torch.arange(n).view(-1, 1, 1, 1) % 2 == 0, rough, smooth)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    """Within tolerance of the largest."""
    assert ours.shape == theirs.shape
    assert theirs.std(dim=0).max() > 0, "the oracle hardly looks at its images"
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def features(n: int, dim: int, seed: int) -> np.ndarray:
    """float64 [n,dim], positive and correlated, as pooled features are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((dim, dim)) / dim**0.5
    return np.maximum(rng.standard_normal((n, dim)) @ mix + 0.3, 0)


def statistics(rows: np.ndarray) -> FrechetStatistics:
    found = FrechetStatistics(rows.shape[1])
    found.update(rows)
    return found


def test_features_are_pytorch_fids(weights, monkeypatch):
    theirs = oracle("pytorch_fid.inception")
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = theirs.InceptionV3([0, 1, 2, 3]).eval()
    x_u8 = pixels(3)
    with torch.no_grad():
        expected = {out.shape[1]: out.mean((2, 3)) for out in network(x_u8.float() / 255)}
    for name, dim in (("inception-64", 64), ("inception-192", 192), ("inception-768", 768), ("inception", 2048)):
        assert_close(open_features(name, weights=weights)(x_u8), expected[dim])


def test_features_and_logits_are_torch_fidelitys(weights):
    theirs = oracle("torch_fidelity.feature_extractor_inceptionv3")
    network = theirs.FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased", "logits"], feature_extractor_weights_path=str(weights)
    )
    x_u8 = pixels(3)
    expected, unbiased, biased = network(x_u8)
    extractor = open_features("inception", weights=weights, protocol="tf")
    found = extractor(x_u8)
    assert_close(found, expected)
    logits = extractor.logits(found)
    assert logits is not None
    assert_close(logits, unbiased)
    assert (logits - biased).abs().max() > 0.1 * biased.abs().max()  # the trap: with the bias it is another score


def test_spatial_features_are_the_first_seven_channels_of_mixed_6_channels_last(weights):
    theirs = oracle("torch_fidelity.feature_extractor_inceptionv3")
    network = theirs.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    x_u8 = pixels(2)
    network(x_u8)
    for name in ("inception", "inception-768"):
        _, spatial = open_features(name, weights=weights, protocol="adm").with_spatial(x_u8)
        assert spatial is not None
        assert spatial.shape == (2, 2023)
        # Single positions, which no mean smooths.
        assert_close(spatial, seen[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1), tolerance=5e-6)


@pytest.mark.parametrize("side", [16, 32, 299, 400])
def test_tensorflows_resize_is_torch_fidelitys(side):
    theirs = oracle("torch_fidelity.interpolate_compat_tensorflow")
    x_u8 = pixels(2, side)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(x_u8.float(), size=(299, 299), align_corners=False)
    assert ((protocols.tensorflow(x_u8) * 128 + 128) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("side", [32, 299, 400])
def test_clean_resize_is_clean_fids(side):
    resize = oracle("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    x_u8 = pixels(2, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.stack([resize(image) for image in x_u8.permute(0, 2, 3, 1).numpy()])
    found = (protocols.clean(x_u8) * 128 + 128).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() <= 2e-4


def test_each_protocol_is_another_one():
    x_u8 = pixels(2)
    made = {name: make(x_u8) for name, make in protocols.PROTOCOLS.items()}
    for name, other in (("pytorch-fid", "tf"), ("pytorch-fid", "clean"), ("tf", "clean")):
        assert (made[name] - made[other]).abs().max() > 0.05
    assert torch.equal(made["tf"], made["adm"])
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert protocols.pytorch_fid(white).max().item() == pytest.approx(1)
    assert protocols.tensorflow(white).max().item() == pytest.approx(127 / 128)  # (x - 128) / 128, not x / 127.5 - 1


@pytest.mark.parametrize("n", [40, 400])
def test_frechet_is_everyones(n):
    a, b = features(n, 64, 1), features(n + 7, 64, 2)
    ours = frechet_distance(statistics(a), statistics(b))
    moments = [a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)]
    fidelity = oracle("torch_fidelity.metric_fid")
    theirs = [{"mu": moments[0], "sigma": moments[1]}, {"mu": moments[2], "sigma": moments[3]}]
    expected = fidelity.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    # Below D samples, rounding puts their eigenvalues that are 0 at 1e-16, whose roots add up.
    assert ours == pytest.approx(expected, rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("pytorch_fid.fid_score", "cleanfid.fid"):
            module = oracle(name)
            compute = getattr(module, "calculate_frechet_distance", None) or module.frechet_distance
            try:
                expected = compute(*moments)
            except TypeError:  # SciPy 1.18 has no sqrtm(disp=)
                continue
            assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow  # its import
def test_frechet_is_torchmetrics():
    torchmetrics = oracle("torchmetrics.image.fid")
    a, b = features(300, 32, 3), features(200, 32, 4)
    m = [torch.from_numpy(rows) for rows in (a, b)]
    expected = torchmetrics._compute_fid(m[0].mean(0), m[0].T.cov(), m[1].mean(0), m[1].T.cov()).item()
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [97, 250])
def test_inception_score_is_torch_fidelitys(n):
    theirs = oracle("torch_fidelity.metric_isc")
    logits = torch.randn(n, 20, generator=torch.Generator().manual_seed(0)) * 3
    logits = logits[logits.argmax(1).argsort()]  # in class order, where shuffling matters
    expected = theirs.isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    found = ScoreStatistics.of(shuffled_splits(n), 20)
    for first in range(0, n, 40):
        found.update(logits[first : first + 40], first)
    mean, std = found.score()
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-9)
    plain = theirs.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert abs(plain["inception_score_mean"] - mean) > 0.1


def test_inception_score_of_blocks_is_guided_diffusions():
    logits = torch.randn(12_000, 5, generator=torch.Generator().manual_seed(0)) * 2
    preds = logits.double().softmax(1).numpy()
    scores = []
    for i in range(0, len(preds), 5000):
        part = preds[i : i + 5000]
        scores.append(np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), 1))))
    found = ScoreStatistics.of(blocks(12_000), 5)
    found.update(logits, 0)
    assert len(found.n) == 3
    assert found.score()[0] == pytest.approx(np.mean(scores), rel=1e-9)


def test_kernel_distance_is_torch_fidelitys():
    theirs = oracle("torch_fidelity.metric_kid")
    a, b = (torch.from_numpy(features(n, 48, seed)).float() for n, seed in ((90, 5), (120, 6)))
    expected = theirs.kid_features_to_metric(
        a.double(), b.double(), kid_subsets=100, kid_subset_size=50, rng_seed=2020, verbose=False
    )
    mean, std = kernel_distance(a, b, subset_size=50)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


def test_precision_and_recall_are_torch_fidelitys():
    theirs = oracle("torch_fidelity.metric_prc")
    a, b = (torch.from_numpy(features(n, 24, seed)).float() for n, seed in ((150, 7), (170, 8)))
    b = b * 1.1
    expected = theirs.prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    assert 0 < expected["precision"] < 1
    found = precision_recall(a, b)  # float64; theirs is the same share of images rounded to float32
    assert [np.float32(share) for share in found] == [expected["precision"], expected["recall"]]


@pytest.mark.slow
def test_the_command_is_torch_fidelitys(weights, tmp_path, capsys):
    theirs = oracle("torch_fidelity")
    sets = [pixels(24, seed=1), pixels(20, seed=2, high=180)]
    for name, x_u8 in zip("ab", sets, strict=True):
        np.savez(tmp_path / f"{name}.npz", arr_0=x_u8.permute(0, 2, 3, 1).numpy())

    class Images(torch.utils.data.Dataset):
        def __init__(self, x_u8: Tensor) -> None:
            self.x_u8 = x_u8

        def __len__(self) -> int:
            return len(self.x_u8)

        def __getitem__(self, i: int) -> Tensor:
            return self.x_u8[i]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.calculate_metrics(
            input1=Images(sets[0]),
            input2=Images(sets[1]),
            fid=True,
            isc=True,
            kid=True,
            prc=True,
            kid_subset_size=20,
            feature_extractor="inception-v3-compat",  # its precision and recall would else be VGG's
            feature_extractor_weights_path=str(weights),
            cuda=False,
            verbose=False,
            cache=False,
            batch_size=10,
        )
    words = f"quality --images {tmp_path / 'a.npz'} --reference {tmp_path / 'b.npz'} --metrics fid,is,kid,prc"
    assert main([*words.split(), "--protocol", "tf", "--weights", str(weights), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["inception_score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-5)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])


def test_density_and_coverage_are_the_authors():
    theirs = oracle("prdc")
    a, b = (features(n, 24, seed) for n, seed in ((150, 7), (170, 8)))
    expected = theirs.compute_prdc(real_features=1.1 * b, fake_features=a, nearest_k=5)
    assert 0 < expected["coverage"] < 1
    found = density_coverage(torch.from_numpy(a), torch.from_numpy(1.1 * b))
    assert found == (pytest.approx(expected["density"]), pytest.approx(expected["coverage"]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own import
@pytest.mark.parametrize(("n", "dim"), [(80, 12), (12, 80)])
def test_the_vendi_score_is_the_authors(n, dim):
    theirs = oracle("vendi_score.vendi")
    rows = features(n, dim, 9)
    assert vendi_score(torch.from_numpy(rows)) == pytest.approx(theirs.score_X(rows, normalize=True), rel=1e-5)
