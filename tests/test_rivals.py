"""Methods that BIGRoC is compared with, on generators and discriminators whose densities are known."""

import json
import math

import pytest
import torch
from torch import nn

from benchmarks.comparison import rivals
from benchmarks.comparison.calibration import calibrate, logistic, z_statistic
from benchmarks.comparison.classifier_logit import ClassifierLogit
from benchmarks.comparison.corrector import Corrected, train_corrector
from benchmarks.comparison.ddls import LangevinSampling
from benchmarks.comparison.dg_flow import GradientFlow, speed
from benchmarks.comparison.dot import OptimalTransport, steepest_slopes, tangential
from benchmarks.comparison.drs import Bounds, RejectionSampling, bounds_of, log_odds
from benchmarks.comparison.latent_gan import LatentGan, PixelGan, Scale
from benchmarks.comparison.mh_gan import MetropolisHastings
from benchmarks.comparison.rivals import RivalConfig, run_rival
from benchmarks.generators.train import train_generator
from refine.generators.sampler import Sampling
from robust_models import load, open_images
from robust_models.errors import UserError
from tests.test_trained_generators import config, data  # noqa: F401  (a fixture)

CPU = torch.device("cpu")
MEAN, DEVIATION = 0.5, 0.7  # of the real images, one number each; made ones are standard normal
MAXIMUM = MEAN**2 / (2 * (1 - DEVIATION**2)) - math.log(DEVIATION)  # of the log-ratio of the densities


class Identity(nn.Module):
    """z (and y) -> z, as an image of z's shape."""

    pixels = "symmetric"

    def __init__(self, z_shape: tuple[int, ...] = (1,), num_classes: int | None = None) -> None:
        super().__init__()
        self.z_shape, self.num_classes = z_shape, num_classes

    def forward(self, z: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return z


def log_ratio(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """log p - log q of images [n,1]; where there are classes, p of class 1 has its mean on the other side."""
    mean = MEAN if y is None else MEAN * (1 - 2 * y)
    return (-((x[:, 0] - mean) ** 2) / (2 * DEVIATION**2) + x[:, 0] ** 2 / 2) - math.log(DEVIATION)


def gan(num_classes: int | None = None, scale: Scale | None = None) -> LatentGan:
    return LatentGan(Identity(num_classes=num_classes), log_ratio, CPU, scale or Scale())


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + k) for k in range(n)]


def assert_real(z: torch.Tensor, mean: float = MEAN, slack: float = 0.0) -> None:
    """Mean and deviation of the real images, within four standard errors."""
    n = len(z)
    assert abs(z.mean().item() - mean) < 4 * DEVIATION / n**0.5 + slack
    assert abs(z.std().item() - DEVIATION) < 4 * DEVIATION / (2 * n) ** 0.5 + slack


# Rejection


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 1.5])
def test_the_odds_of_rejection_sampling_and_their_shift(gamma):
    below = torch.linspace(-8, -0.01, 50)
    ratio = below.exp()
    expected = ratio / (ratio + math.exp(gamma) * (1 - ratio))  # exp(d - M) itself where gamma is 0
    found = log_odds(below + 3, torch.tensor(3.0), torch.tensor(gamma)).sigmoid()
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_logit_above_the_highest_is_kept():
    found = log_odds(torch.tensor([5.0, 3.0]), torch.tensor(3.0), torch.tensor(0.0))
    assert found.isfinite().all()
    assert (found.sigmoid() > 0.999).all()


def test_rejection_sampling_gives_real_images_at_the_cost_of_its_odds():
    latent = gan()
    rival = RejectionSampling(latent, Bounds(torch.tensor([MAXIMUM]), torch.zeros(1)))
    z = rival.choose(generators(4000), None)
    assert_real(z)
    assert latent.passes["discriminator"] / 4000 == pytest.approx(math.exp(MAXIMUM), rel=0.05)
    assert latent.passes["generator"] == latent.passes["discriminator"]
    assert latent.passes["generator backward"] == 0


def test_rejection_sampling_of_classes_has_bounds_of_each():
    d, y = torch.tensor([1.0, 2, 3, 10, 20, 30]), torch.tensor([0, 0, 0, 1, 1, 1])
    bounds = bounds_of(d, y, 50)
    assert bounds.highest.tolist() == [3, 30]
    middle = [log_odds(torch.tensor(v), torch.tensor(top), torch.tensor(0.0)) for v, top in ((2.0, 3.0), (20.0, 30.0))]
    assert torch.allclose(bounds.gamma, torch.stack(middle))
    z = RejectionSampling(gan(2), Bounds(torch.full((2,), MAXIMUM), torch.zeros(2))).choose(
        generators(4000), torch.arange(4000) % 2
    )
    assert_real(z[::2])
    assert_real(z[1::2], -MEAN)


def test_where_nothing_is_kept_the_best_proposal_is(monkeypatch):
    monkeypatch.setattr("benchmarks.comparison.drs.MOST", 30)
    hopeless = RejectionSampling(gan(), Bounds(torch.tensor([1e3]), torch.tensor([50.0])))
    z = hopeless.choose(generators(8), None)
    for k, one in enumerate(generators(8)):
        proposals = []
        for _ in range(30):
            proposals.append(torch.randn(1, generator=one))
            torch.rand(1, generator=one)
        ratios = log_ratio(torch.stack(proposals))
        assert z[k] == proposals[int(ratios.argmax())]


# Metropolis-Hastings


def test_chains_of_metropolis_and_hastings_end_at_real_images():
    latent = gan()
    start = MEAN + DEVIATION * torch.randn(500, 1, generator=torch.Generator().manual_seed(5))
    rival = MetropolisHastings(latent, [log_ratio(start)], proposals=30)
    z = rival.choose(generators(3000), None)
    assert_real(z)
    assert latent.passes["discriminator"] >= 30 * 3000


def test_a_chain_that_never_moves_is_begun_anew_and_ends_in_the_best_proposal():
    latent = gan()
    z = MetropolisHastings(latent, [torch.tensor([1e6])], proposals=5).choose(generators(3), None)
    assert latent.passes["generator"] == 20 * 5 * 3
    assert (z != 0).all()
    assert (log_ratio(z) > 0.4).all()  # of a hundred proposals: near the maximum of 0.6


def test_the_rule_of_acceptance_is_the_papers():
    """min(1, (1/D - 1) / (1/D' - 1)) in log-odds."""
    d, proposed = torch.tensor([0.3, -1.2]), torch.tensor([-0.5, 2.0])
    paper = ((1 / d.sigmoid() - 1) / (1 / proposed.sigmoid() - 1)).clamp(max=1)
    assert torch.allclose(paper, (proposed - d).exp().clamp(max=1), atol=1e-6)


# Calibration


def test_calibration_finds_the_log_odds_of_two_gaussians():
    torch.manual_seed(0)
    real, fake = 2 + 1.5 * torch.randn(40_000), -1 + 1.5 * torch.randn(40_000)
    slope, offset = 3 / 1.5**2, -(4 - 1) / (2 * 1.5**2)
    found = logistic(real, fake)
    assert found.slope == pytest.approx(slope, rel=0.03)
    assert found.offset == pytest.approx(offset, abs=0.05)
    distorted = calibrate(3 * real[:2000] + 5, 3 * fake[:2000] + 5)
    assert abs(distorted.z_before) > 10
    assert abs(distorted.z_after) < 4
    assert distorted.scale.slope == pytest.approx(slope / 3, rel=0.15)


@pytest.mark.parametrize("case", ["apart", "equal", "far away"])
def test_logits_without_overlap_or_spread_give_finite_scales(case):
    real, fake = {
        "apart": (torch.arange(1.0, 9), -torch.arange(1.0, 9)),
        "equal": (torch.ones(8), torch.ones(8)),
        "far away": (1e4 + torch.randn(50) * 1e-3, 1e4 + torch.randn(50) * 1e-3),
    }[case]
    found = calibrate(real, fake)
    numbers = [found.scale.slope, found.scale.offset, found.z_before, found.z_after]
    assert all(map(math.isfinite, numbers))
    assert abs(found.z_after) < 2


def test_the_z_statistic_by_hand():
    d = torch.tensor([0.9, 0.6, 0.2])
    logits = (d / (1 - d)).log()
    expected = (2 - 1.7) / math.sqrt(0.09 + 0.24 + 0.16)
    assert z_statistic(logits[:2], logits[2:]) == pytest.approx(expected, rel=1e-5)


def test_a_scale_is_in_logits_and_gradients():
    z = torch.tensor([[0.3], [1.0]])
    plain, scaled = gan(), gan(scale=Scale(2.0, -1.0))
    assert torch.allclose(scaled.logits(z, None), 2 * plain.logits(z, None) - 1)
    d, gradient = scaled.gradient(z, None)
    assert torch.allclose(d, 2 * plain.logits(z, None) - 1)
    assert torch.allclose(gradient, 2 * (-(z - MEAN) / DEVIATION**2 + z), atol=1e-5)
    assert scaled.passes == {
        "generator": 4, "generator backward": 2, "discriminator": 4, "discriminator backward": 2,
    }  # fmt: skip


# Moving noise


def test_langevin_sampling_ends_at_real_images():
    z = LangevinSampling(gan(), steps=300, step_size=0.03).choose(generators(3000), None)
    assert_real(z, slack=0.02)  # steps are finite


def test_langevin_sampling_stays_where_the_discriminator_says_nothing():
    flat = LatentGan(Identity(), lambda x: 0 * x[:, 0], CPU)
    z = LangevinSampling(flat, steps=100, step_size=0.02).choose(generators(3000), None)
    assert abs(z.mean()) < 0.08
    assert abs(z.std() - 1) < 0.06


def linear(w: torch.Tensor) -> LatentGan:
    return LatentGan(Identity(tuple(w.shape)), lambda x: (x * w).sum(1), CPU)


def test_gradient_flow_of_a_linear_discriminator_drifts_and_spreads():
    rival = GradientFlow(linear(torch.tensor([0.5])), steps=20, step_size=0.1, gamma=0.1)
    z = rival.choose(generators(3000), None)
    deviation = (1 + 2 * 0.1 * 0.1 * 20) ** 0.5
    assert abs(z.mean() - 20 * 0.1 * 0.5) < 4 * deviation / 3000**0.5
    assert abs(z.std() - deviation) < 4 * deviation / 6000**0.5


def test_the_speed_of_each_divergence():
    d = torch.tensor([-1.0, 0.0, 2.0])
    assert speed(d, "kl").tolist() == [1, 1, 1]
    assert torch.allclose(speed(d, "logd"), 1 / (1 + d.exp()))
    assert torch.allclose(speed(d, "js"), 1 / (1 + (-d).exp()))


def test_a_step_of_optimal_transport_by_hand():
    w = torch.tensor([1.0, -2.0, 0.5])
    rival = OptimalTransport(linear(w), torch.tensor([4.0]), steps=1, step_size=0.1)
    (start,) = torch.stack([torch.randn(3, generator=one) for one in generators(1)])
    gradient = torch.full((3,), 3**-0.5) - w / 4
    gradient = gradient - start * (gradient @ start) / (start @ start)
    (z,) = rival.choose(generators(1), None)
    assert torch.allclose(z, start - 0.1 * gradient, atol=1e-5)
    assert (tangential(torch.randn(5, 3), start.expand(5, 3)) @ start).abs().max() < 1e-5


def test_optimal_transport_goes_up_and_stays_near():
    w = torch.randn(64, generator=torch.Generator().manual_seed(0))
    latent = linear(w)
    rival = OptimalTransport(latent, torch.tensor([w.norm().item() / 3]), steps=50, step_size=0.02)
    start = torch.stack([torch.randn(64, generator=one) for one in generators(16)])
    z = rival.choose(generators(16), None)
    assert (latent.logits(z, None) > latent.logits(start, None) + 0.5 * w.norm()).all()
    assert ((z.norm(dim=1) / start.norm(dim=1) - 1).abs() < 0.05).all()
    assert ((z - start).norm(dim=1) < 50 * 0.02 * 4).all()


def test_the_steepest_slope_of_a_line_is_its_own():
    assert steepest_slopes(linear(torch.tensor([-1.5])), 20, seed=0).item() == pytest.approx(1.5, rel=1e-3)
    of_classes = LatentGan(Identity(num_classes=2), lambda x, y: (1 + y) * x[:, 0], CPU)
    assert steepest_slopes(of_classes, 20, seed=0).tolist() == pytest.approx([1, 2], rel=1e-3)


class Doubling(Identity):
    """z -> 2 z."""

    def forward(self, z: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * z


def test_pixels_begin_at_the_samples_and_move_by_the_discriminator_alone():
    w = torch.tensor([3.0, 4.0])
    pixels_of = PixelGan(Doubling((2,)), lambda x: (x * w).sum(1), CPU)
    start = 2 * torch.stack([torch.randn(2, generator=one) for one in generators(3)])
    flow = GradientFlow(pixels_of, steps=4, step_size=0.1, gamma=0.0).choose(generators(3), None)
    assert torch.allclose(flow, start + 4 * 0.1 * w, atol=1e-5)
    assert pixels_of.passes == {
        "generator": 3, "generator backward": 0, "discriminator": 12, "discriminator backward": 12,
    }  # fmt: skip
    step = OptimalTransport(pixels_of, torch.tensor([10.0]), steps=1, step_size=0.1).choose(generators(3), None)
    assert torch.allclose(step, start - 0.1 * (2**-0.5 - w / 10), atol=1e-5)
    slope = steepest_slopes(pixels_of, 200, seed=0).item()
    assert 4.5 < slope <= 5.0001  # ||w||, the steepest direction
    assert torch.equal(pixels_of.images(torch.tensor([[-3.0, 0.5]]), None), torch.tensor([[0.0, 0.75]]))


# On a trained run

METHODS = {
    "none": {},
    "drs": {"burn_in": 30, "percentile": 90},
    "mh-gan": {"proposals": 3},
    "dot": {"steps": 2},
    "ddls": {"steps": 2},
    "dg-flow": {"steps": 2},
}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs")
    for model in ("cgan-pd", "sngan", "vae"):
        train_generator(config(data, folder / model, model, steps=2))
    return folder


def rival(runs, data, out, method="drs", model="cgan-pd", **changed):  # noqa: F811
    flags = {"run": runs / model, "data": str(data), "held_out": 40, "num_images": 5, "device": "cpu"}
    return run_rival(RivalConfig(method=method, out=out, **{**flags, **METHODS[method], **changed}))


def pixels(path) -> torch.Tensor:
    images = open_images(path)
    return images.read(0, len(images))


@pytest.mark.parametrize("model", ["cgan-pd", "sngan"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_writes_samples_and_what_they_cost(runs, data, tmp_path, method, model):  # noqa: F811
    found = rival(runs, data, tmp_path / "a.npz", method, model)
    images = open_images(tmp_path / "a.npz")
    assert len(images) == 5
    assert (images.labels is None) == (model == "sngan")
    assert json.loads((tmp_path / "a.json").read_text()) == found
    passes = found["passes per image"]
    expected = {
        "none": (1, 0),
        "mh-gan": (3 + 1, 0),
        "dot": (2 + 1, 2),
        "ddls": (2 + 1, 2),
        "dg-flow": (2 + 1, 2),
    }
    if method == "drs":
        assert passes["generator"] == passes["discriminator"] + 1 >= 2
    elif method != "mh-gan":  # whose chains may be begun anew
        assert (passes["generator"], passes["generator backward"]) == expected[method]
        assert passes["discriminator"] == passes["discriminator backward"] == expected[method][1]
    assert (found["calibration"] is not None) == (method == "mh-gan")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npz"]
    starts = rival(runs, data, tmp_path / "starts.npz", "none", model)
    assert torch.equal(pixels(tmp_path / "a.npz"), pixels(starts["out"])) == (method == "none")


@pytest.mark.parametrize("method", ["dot", "dg-flow"])
def test_a_method_moves_pixels_without_the_generator(runs, data, tmp_path, method):  # noqa: F811
    found = rival(runs, data, tmp_path / "a.npz", method, space="pixel")
    passes = {"generator": 1, "generator backward": 0, "discriminator": 2, "discriminator backward": 2}
    assert found["passes per image"] == passes
    rival(runs, data, tmp_path / "starts.npz", "none")
    moved = (pixels(tmp_path / "a.npz").int() - pixels(tmp_path / "starts.npz").int()).abs().float()
    assert 0 < moved.mean() < 60


def test_a_run_that_was_stopped_goes_on_to_the_same_samples_and_cost(runs, data, tmp_path, monkeypatch):  # noqa: F811
    whole = rival(runs, data, tmp_path / "whole.npz", num_images=70)
    original = Sampling.block

    def block(self, first, count, *, quick=False):
        if first:
            raise KeyboardInterrupt
        return original(self, first, count, quick=quick)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "block", block)
        with pytest.raises(KeyboardInterrupt):
            rival(runs, data, tmp_path / "b.npz", num_images=70)
    assert not (tmp_path / "b.npz").exists()
    with pytest.raises(UserError, match=r"b.npz.work is of samples with another percentile .90.0 there, 60.0 now"):
        rival(runs, data, tmp_path / "b.npz", num_images=70, percentile=60)
    found = rival(runs, data, tmp_path / "b.npz", num_images=70)
    assert found["passes per image"] == whole["passes per image"]
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert rival(runs, data, tmp_path / "b.npz", num_images=70) == found
    with pytest.raises(UserError, match="another method"):
        rival(runs, data, tmp_path / "b.npz", "none", num_images=70)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_samples_of_a_run_are_not_those_of_its_continuation(data, tmp_path):  # noqa: F811
    train_generator(config(data, tmp_path / "sngan", "sngan", steps=1))
    rival(tmp_path, data, tmp_path / "a.npz", "none", "sngan")
    train_generator(config(data, tmp_path / "sngan", "sngan", steps=2))
    with pytest.raises(UserError, match=r"a\.json is of samples with another training"):
        rival(tmp_path, data, tmp_path / "a.npz", "none", "sngan")


def test_an_image_does_not_depend_on_those_beside_it(runs, data, tmp_path):  # noqa: F811
    rival(runs, data, tmp_path / "few.npz", num_images=3)
    rival(runs, data, tmp_path / "many.npz", num_images=20)
    difference = pixels(tmp_path / "few.npz").int() - pixels(tmp_path / "many.npz")[:3].int()
    assert difference.abs().max() <= 1  # other sizes of a batch round otherwise


def test_a_classifier_takes_the_discriminators_place(runs, data, tmp_path, checkpoint):  # noqa: F811
    for model in ("cgan-pd", "vae"):
        found = rival(runs, data, tmp_path / f"{model}.npz", "dg-flow", model, classifier=str(checkpoint))
        assert found["passes per image"]["discriminator backward"] == 2
    network = load(checkpoint).eval()
    x, y = torch.rand(4, 3, 32, 32) * 2 - 1, torch.tensor([0, 2, 1, 0])
    logits = network((x + 1) / 2)
    assert torch.allclose(ClassifierLogit(network, "symmetric")(x, y), logits[range(4), y])
    assert torch.allclose(ClassifierLogit(network, "symmetric")(x), logits.exp().sum(1).log(), atol=1e-5)


def test_a_corrector_learns_the_log_odds_of_two_generators():
    class Shifted(Identity):
        def forward(self, z, y=None):
            return z + 0.5

    class Line(nn.Linear):
        num_classes = None

        def forward(self, x):
            return super().forward(x).squeeze(1)

    corrector = Line(1, 1)
    nn.init.zeros_(corrector.weight), nn.init.zeros_(corrector.bias)
    train_corrector(corrector, Shifted(), Identity(), steps=5000, seed=0)
    assert abs(corrector.weight.item() - 0.5) < 0.05  # log N(x; 0.5, 1) - log N(x; 0, 1) = 0.5 x - 0.125
    assert abs(corrector.bias.item() + 0.125) < 0.05


def test_a_corrected_discriminator_is_the_sum_in_the_generators_pixels():
    x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
    discriminator = ByClass()
    found = Corrected(discriminator, lambda x, y: 10 * x.sum((1, 2, 3)), "unit")(x, y)
    assert torch.allclose(found, discriminator(2 * x - 1, y) + 10 * (2 * x - 1).sum((1, 2, 3)))


class ByClass(nn.Module):
    num_classes = 2

    def forward(self, x, y):
        return x.square().sum((1, 2, 3)) * (y + 1)


def test_another_discriminator_and_a_corrector_serve_a_vae(runs, data, tmp_path, monkeypatch):  # noqa: F811
    flags = {"discriminator": runs / "cgan-pd", "corrector_steps": 2, "num_images": 70}
    found = rival(runs, data, tmp_path / "a.npz", "dg-flow", "vae", **flags)
    assert found["passes of preparation"]["corrector"] == 2 * 2 * 64
    assert found["passes per image"]["discriminator backward"] == 2 * 2  # it, and the corrector
    rival(runs, data, tmp_path / "raw.npz", "none", "vae", **flags)
    assert not torch.equal(pixels(tmp_path / "a.npz"), pixels(tmp_path / "raw.npz"))
    whole = rivals._part

    def stopped(sampling, gan, first, work, total):
        if first:
            raise KeyboardInterrupt
        return whole(sampling, gan, first, work, total)

    monkeypatch.setattr(rivals, "_part", stopped)
    with pytest.raises(KeyboardInterrupt):
        rival(runs, data, tmp_path / "b.npz", "dg-flow", "vae", **flags)
    monkeypatch.setattr(rivals, "_part", whole)
    monkeypatch.setattr(rivals, "train_corrector", lambda *_: pytest.fail("trained twice"))
    rival(runs, data, tmp_path / "b.npz", "dg-flow", "vae", **flags)
    assert torch.equal(pixels(tmp_path / "a.npz"), pixels(tmp_path / "b.npz"))


BAD = {
    "one of its own": ({"discriminator": "sngan"}, "discriminator: .* has one of its own; leave --discriminator out"),
    "none there either": (
        {"model": "vae", "discriminator": "vae"},
        "discriminator: .* has none; name the run of",
    ),
    "both": (
        {"model": "vae", "discriminator": "sngan", "classifier": "any"},
        "discriminator: --classifier takes its",
    ),
    "no discriminator": (
        {"model": "vae"},
        "run: .* has no discriminator; give --discriminator RUN of a GAN, or --cl",
    ),
    "too few real images": ({"method": "mh-gan", "held_out": 49}, "held_out: 49, but .* has 48 images; give fewer"),
    "no classifier": ({"classifier": "nope"}, "classifier: no file nope"),
    "no run": ({"model": "unknown"}, "run: .* holds no generator"),
    "other classes": ({"classifier": "cifar10-l2-small"}, "classifier: .* knows 10 classes, .* makes 3"),
    "noise chosen in pixels": ({"space": "pixel"}, "space: pixel is for dot and dg-flow; drs chooses noise"),
    "a class without real images": ({"method": "mh-gan", "held_out": 1}, "but none of class"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(runs, data, tmp_path, case):  # noqa: F811
    changed, message = BAD[case]
    if "discriminator" in changed:
        changed = {**changed, "discriminator": runs / changed["discriminator"]}
    with pytest.raises(UserError, match=message):
        rival(runs, data, tmp_path / "a.npz", **changed)
    assert list(tmp_path.iterdir()) == []
