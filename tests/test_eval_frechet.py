"""Frechet statistics and distance: closed forms, independence of batching, singular covariances, files, Inception."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from robust_models import UserError
from robust_models.features import inception_network, inception_weights, open_features, protocols
from robust_models.metrics import (
    FrechetStatistics,
    StoredStatistics,
    frechet_distance,
    read_statistics,
    write_statistics,
)
from robust_models.runtime.files import sha256_of

PARTIAL = Path(__file__).parents[2] / "shared" / "data" / "inception" / "inception2015_upto_mixed7a.pth"


def statistics(features: np.ndarray) -> FrechetStatistics:
    found = FrechetStatistics(features.shape[1])
    found.update(features)
    return found


def moments(mean: np.ndarray, covariance: np.ndarray) -> StoredStatistics:
    return StoredStatistics(Path("memory"), np.asarray(mean, float), np.asarray(covariance, float))


def random_covariance(dim: int, seed: int, rank: int | None = None) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((dim, rank or 2 * dim))
    return factor @ factor.T / factor.shape[1]


def test_statistics_are_mean_and_numpy_cov():
    features = np.random.default_rng(0).standard_normal((50, 7)) + 100
    found = statistics(features)
    assert found.n == 50
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-12)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 1000))
@settings(max_examples=25)
def test_merged_parts_equal_the_whole_however_they_are_cut(sizes, seed):
    # A mean far from 0 is where sums of squares lose their digits.
    features = np.random.default_rng(seed).standard_normal((sum(sizes) + 2, 5)) + 1e4
    parts = np.split(features, np.cumsum(sizes))
    batched, merged = FrechetStatistics(5), FrechetStatistics(5)
    for part in parts:
        batched.update(part)
        merged.merge(statistics(part))
    whole = statistics(features)
    for found in (batched, merged):
        assert found.n == whole.n
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-9, atol=1e-10)


def test_float32_tensors_are_summed_in_float64():
    features = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) + 1000
    found = FrechetStatistics(4)
    found.update(features)
    np.testing.assert_allclose(found.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-12)


def test_statistics_refuse_what_would_spoil_them():
    found = FrechetStatistics(3)
    found.update(np.zeros((1, 3)))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        _ = found.covariance
    with pytest.raises(UserError, match="features of image 2 are not finite"):
        found.update(np.array([[0, 0, 0], [0, np.nan, 0]]))
    with pytest.raises(ValueError, match=r"expected shape \[n,3\], got \[2, 4\]"):
        found.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="4 features cannot join statistics of 3"):
        found.merge(FrechetStatistics(4))
    assert found.n == 1


def test_equal_sets_are_at_distance_zero():
    features = np.random.default_rng(1).standard_normal((200, 20))
    assert frechet_distance(statistics(features), statistics(features)) == pytest.approx(0, abs=1e-10)
    few = features[:10]
    assert frechet_distance(statistics(few), statistics(few)) == pytest.approx(0, abs=1e-10)


def test_equal_covariances_leave_the_squared_gap_of_the_means():
    features = np.random.default_rng(2).standard_normal((300, 16))
    shift = np.linspace(-1, 1, 16)
    distance = frechet_distance(statistics(features), statistics(features + shift))
    assert distance == pytest.approx(shift @ shift, rel=1e-10)


def test_scaled_covariances():
    covariance = random_covariance(12, 3)
    a, b = moments(np.zeros(12), covariance), moments(np.zeros(12), 4 * covariance)
    assert frechet_distance(a, b) == pytest.approx(np.trace(covariance), rel=1e-10)  # (1 - 2)^2 tr S


def test_one_dimension_is_the_gap_of_means_and_of_deviations():
    assert frechet_distance(moments([1], [[4]]), moments([4], [[25]])) == pytest.approx(9 + (5 - 2) ** 2)


@pytest.mark.parametrize("dim", [3, 40, 120])
def test_agrees_with_the_matrix_square_root(dim):
    s_a, s_b = random_covariance(dim, 4), random_covariance(dim, 5)
    gap = np.ones(dim)
    expected = gap @ gap + np.trace(s_a + s_b - 2 * np.real(sqrtm(s_a @ s_b)))
    distance = frechet_distance(moments(gap, s_a), moments(0 * gap, s_b))
    assert distance == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(moments(0 * gap, s_b), moments(gap, s_a)) == pytest.approx(distance, rel=1e-12)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(5, 60), (60, 5), (5, 9), (1, 1)])
def test_singular_covariances(rank_a, rank_b):
    s_a, s_b = random_covariance(30, 6, rank_a), random_covariance(30, 7, rank_b)
    # Independent form: the singular values of the product of the two sample factors.
    factor_a = np.random.default_rng(6).standard_normal((30, rank_a)) / rank_a**0.5
    factor_b = np.random.default_rng(7).standard_normal((30, rank_b)) / rank_b**0.5
    root = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
    distance = frechet_distance(moments(np.zeros(30), s_a), moments(np.zeros(30), s_b))
    assert distance == pytest.approx(np.trace(s_a) + np.trace(s_b) - 2 * root, rel=1e-10)


def test_a_feature_that_never_varies():
    covariance = np.diag([1.0, 0.0])
    assert frechet_distance(moments([0, 0], covariance), moments([0, 0], 0 * covariance)) == pytest.approx(1)


def test_other_dimensions_are_refused():
    with pytest.raises(UserError, match="statistics of 2 features cannot be compared with statistics of 3"):
        frechet_distance(moments(np.zeros(2), np.eye(2)), moments(np.zeros(3), np.eye(3)))


def test_stored_statistics_return_as_written(tmp_path):
    whole = statistics(np.random.default_rng(8).standard_normal((30, 4)))
    file = tmp_path / "stats.npz"
    write_statistics(file, whole, features="inception-768", protocol="pytorch-fid", sha256="ab")
    found = read_statistics(file)
    assert found is not None
    np.testing.assert_array_equal(found.mean, whole.mean)
    np.testing.assert_array_equal(found.covariance, whole.covariance)
    assert (found.n, found.features, found.protocol, found.sha256) == (30, "inception-768", "pytorch-fid", "ab")
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]


def test_foreign_statistics_need_mu_and_sigma_alone(tmp_path):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(2, np.float32), sigma=np.eye(2))
    found = read_statistics(tmp_path / "foreign.npz")
    assert found is not None
    assert found.mean.dtype == np.float64
    assert (found.n, found.features) == (None, None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, "without 'sigma'"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"mu is \[2\], sigma \[3, 3\]"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "finite real"),
    ],
)
def test_bad_statistics(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "bad.npz")


def test_an_image_set_is_no_statistics(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert read_statistics(tmp_path / "images.npz") is None
    assert read_statistics(tmp_path) is None


def test_inception_weights_come_from_a_cache_else_by_a_download_that_is_said_and_checked(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / "hub" / "checkpoints"
    source = tmp_path / "elsewhere.pth"
    torch.save({"fc.weight": torch.zeros(2)}, source)
    monkeypatch.setattr(inception_weights, "URL", source.as_uri())
    with pytest.raises(
        UserError, match=r"weights: the Inception network could not be had \(invalid hash.*--weights FILE"
    ):
        inception_weights._download(source.as_uri())
    assert not list(cache.iterdir())

    monkeypatch.setattr(inception_weights, "WHOLE", sha256_of(source))
    monkeypatch.setattr(inception_weights, "URL", "https" + source.as_uri()[4:])  # a host that is none
    with pytest.raises(UserError, match="weights: the Inception network could not be had"):
        inception_weights.find_weights()
    capfd.readouterr()
    found = inception_weights._download(source.as_uri())
    assert found == cache / "pt_inception-2015-12-05-6726825d.pth"
    assert "weights: downloading file:" in capfd.readouterr().err
    assert inception_weights.find_weights() == found
    assert list(inception_weights.read_weights(found)[0]) == ["fc.weight"]
    assert inception_weights.find_weights(source.as_uri()) == source
    found.rename(cache / "weights-inception-2015-12-05-6726825d.pth")  # torch-fidelity's name
    assert inception_weights.find_weights().name.startswith("weights-")


def test_a_file_of_the_first_layers_is_found_where_they_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(inception_weights, "_cache", lambda: tmp_path)
    assert inception_weights.cached_weights(first_part=True) is None
    (tmp_path / inception_weights.FIRST_PART).touch()
    assert inception_weights.cached_weights() is None
    assert inception_weights.find_weights(first_part=True) == tmp_path / inception_weights.FIRST_PART
    whole = tmp_path / inception_weights.CACHE_NAMES[1]
    whole.touch()
    assert inception_weights.find_weights(first_part=True) == inception_weights.find_weights() == whole


def test_other_files_are_not_weights(tmp_path):
    page = tmp_path / "weights.pth"
    page.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"is a web page, not the FID Inception .*expected 6726825d"):
        inception_weights.read_weights(page)
    with pytest.raises(UserError, match="weights: no file"):
        inception_weights.find_weights(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="weights: no file"):
        inception_weights.find_weights((tmp_path / "absent.pth").as_uri())


def test_unknown_feature_spaces():
    with pytest.raises(
        UserError, match=r"'inception-2048' is none of classifier:NAME_OR_FILE, inception, inception-768, .*dinov2"
    ):
        open_features("inception-2048")
    with pytest.raises(UserError, match="weights: belongs to the Inception network"):
        open_features("classifier:some", weights=Path("weights.pth"))


def test_pytorch_fid_preprocessing_by_hand():
    x_u8 = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).expand(1, 3, 2, 2)
    x = protocols.pytorch_fid(x_u8)
    assert x.shape == (1, 3, 299, 299)
    assert x[0, 0, 0, 0] == -1  # beyond the outermost pixel centres nothing is interpolated
    assert x[0, 0, 0, -1] == 1
    assert x[0, 0, 149, 149].item() == pytest.approx(0, abs=1e-6)
    # Output column i lies at (i + 1/2) * 2/299 - 1/2 of the input: 100 is at 0.1722 between 0 and 1.
    assert x[0, 0, 0, 100].item() == pytest.approx(2 * (100.5 * 2 / 299 - 0.5) - 1, abs=1e-5)


@pytest.fixture(scope="module")
def torch_fidelity():
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed")


def test_network_equals_torch_fidelity_bit_for_bit(torch_fidelity, tmp_path):
    """Random weights in the whole network; at 299 px its own resize does nothing, so only scaling is left to match."""
    random = inception_network.build("Mixed_7c").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in random.state_dict().items():
        if name.endswith("conv.weight"):
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif not name.endswith("num_batches_tracked"):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, tmp_path / "random.pth")
    reference = torch_fidelity.FeatureExtractorInceptionV3(
        "reference", ["64", "192", "768", "2048"], feature_extractor_weights_path=str(tmp_path / "random.pth")
    )
    x_u8 = torch.randint(0, 256, (1, 3, 299, 299), generator=generator, dtype=torch.uint8)
    expected = dict(zip((64, 192, 768, 2048), reference(x_u8), strict=True))
    for last, dim in inception_network.DEPTHS.values():
        network = inception_network.fill(inception_network.build(last), state)
        features = network((x_u8.float() - 128) / 128)
        assert features.shape == (1, dim)
        assert features.std() > 0
        assert torch.equal(features, expected[dim])


@pytest.fixture(scope="module")
def partial_state(torch_fidelity):
    if not PARTIAL.is_file():
        pytest.skip(f"the partial Inception weights are not at {PARTIAL}")
    return inception_weights.read_weights(PARTIAL)[0]


def test_the_real_weights_against_torchvisions_network(partial_state, monkeypatch):
    """torchvision's InceptionV3 is another author's; TensorFlow's average pool, which leaves out the padding, is the
    only difference up to Mixed_6e."""
    from torchvision.models import inception_v3

    oracle = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).eval()
    assert not oracle.load_state_dict(partial_state, strict=False).unexpected_keys
    seen = []
    oracle.Mixed_6e.register_forward_hook(lambda _module, _inputs, output: seen.append(output.mean((2, 3))))
    plain = F.avg_pool2d
    monkeypatch.setattr(F, "avg_pool2d", lambda *args, **more: plain(*args, **more, count_include_pad=False))
    x_u8 = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        oracle(protocols.pytorch_fid(x_u8))
    monkeypatch.undo()
    extractor = open_features("inception-768", weights=PARTIAL)
    torch.testing.assert_close(extractor(x_u8), seen[0], rtol=1e-5, atol=1e-6)
    assert (extractor.dim, extractor.protocol, extractor.is_fid) == (768, "pytorch-fid", False)


def test_partial_weights_are_not_enough_for_the_fid(partial_state):
    with pytest.raises(UserError, match="only the first part of the network: Mixed_7b, Mixed_7c missing"):
        open_features("inception", weights=PARTIAL)


def test_missing_torch_fidelity_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"needs torch-fidelity .*pip install"):
        open_features("inception")
