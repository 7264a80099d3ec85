"""Generators trained by benchmarks/generators: their losses and layers, and runs that go on where they stopped."""

import multiprocessing
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.generators import augment, gan, train, vae
from benchmarks.generators.config import GeneratorConfig, recipe_of
from benchmarks.generators.folder import open_run
from benchmarks.generators.layers import BatchNorm, Discriminator, add_spectral_norms, bake_spectral_norms
from benchmarks.generators.model import Setting, computing
from benchmarks.generators.models import MODELS
from benchmarks.generators.sample import SampleConfig, sample
from benchmarks.generators.train import Run, train_generator
from robust_models import open_images
from robust_models.errors import UserError
from robust_models.runtime.files import PRETRAINED
from robust_models.runtime.signals import Interrupted
from tests.test_generators import run as refine
from tests.tiny import tiny_pixels
from train.report import read_metrics

TRAINED = Path(train.__file__).parent / "trained"
GANS = ["dcgan", "wgan-gp", "sngan", "ssgan", "cgan-pd", "biggan", "diff-biggan"]
OF_CLASSES = ["vae", "dcgan", "cgan-pd", "biggan", "diff-biggan", "edm"]
DIFFUSERS = {"edm", "ddpm"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """48 images of 32x32 pixels and three classes."""
    pixels, labels = tiny_pixels(48)
    path = tmp_path_factory.mktemp("data") / "real.npz"
    np.savez(path, arr_0=pixels.repeat(2, axis=1).repeat(2, axis=2), arr_1=labels)
    return path


def config(data: Path, out: Path, model: str = "cgan-pd", **changed) -> GeneratorConfig:
    if model in DIFFUSERS:
        pytest.importorskip("diffusers")
    small = {"width": 8, "steps": 4, "batch_size": 8, "log_every": 3, "precision": "fp32", "device": "cpu"}
    return GeneratorConfig(model=model, data=str(data), out=out, **{**small, **changed})


def setting(model: str, num_classes: int = 3, width: int = 8, **changed) -> Setting:
    recipe = recipe_of(GeneratorConfig(model=model, out=Path("unused"), width=width, batch_size=8, **changed))
    return Setting(recipe, num_classes, torch.device("cpu"), "fp32")


def made(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that the end of a run leaves, but for what tells the time."""
    files = [*folder.glob("*.safetensors"), *folder.glob("pipeline/**/*.*"), folder / "samples.png"]
    assert len(files) > 1
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


def rows(folder: Path) -> list[dict]:
    """The losses that a run has written, without its speed."""
    return [
        {name: row[name] for name in row if name != "images_per_s"} for row in read_metrics(folder / "metrics.jsonl")
    ]


# Losses


def test_losses_are_those_of_their_papers():
    real, fake = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([-2.0, 0.25])
    hinge, cross_entropy, wasserstein = (gan.LOSSES[name] for name in ("hinge", "cross-entropy", "wasserstein"))
    assert hinge.real(real) == pytest.approx((0.5 + 0 + 2) / 3)
    assert hinge.fake(fake) == pytest.approx((0 + 1.25) / 2)
    assert hinge.generator(fake) == pytest.approx(1.75 / 2)
    probabilities = np.array([1 / (1 + np.exp(-v)) for v in (0.5, 2.0, -1.0)])
    made_ones = np.array([1 / (1 + np.exp(-v)) for v in (-2.0, 0.25)])
    assert cross_entropy.real(real) == pytest.approx(-np.log(probabilities).mean())
    assert cross_entropy.fake(fake) == pytest.approx(-np.log(1 - made_ones).mean())
    assert cross_entropy.generator(fake) == pytest.approx(-np.log(made_ones).mean())
    assert wasserstein.real(real) + wasserstein.fake(fake) == pytest.approx(-1.75 / 2 - 0.5)
    assert wasserstein.generator(fake) == pytest.approx(1.75 / 2)


class Linear(nn.Module):
    """x -> <w, x>."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w).sum((1, 2, 3))


def test_the_gradient_penalty_of_a_linear_discriminator_and_its_gradient():
    w = torch.randn(3, 4, 4)
    network = Linear(w)
    penalty = gan.gradient_penalty(network, torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4))
    assert penalty.item() == pytest.approx((w.norm().item() - 1) ** 2, rel=1e-5)
    penalty.backward()
    assert torch.allclose(network.w.grad, 2 * (w.norm() - 1) * w / w.norm(), atol=1e-5)


def test_the_penalty_is_taken_between_real_and_made_images():
    seen = []

    class Seeing(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach())
            return super().forward(x)

    x, x_fake = torch.zeros(64, 3, 2, 2), torch.ones(64, 3, 2, 2)
    gan.gradient_penalty(Seeing(torch.ones(3, 2, 2)), x, x_fake)
    share = seen[0].flatten(1)
    assert (share == share[:, :1]).all()  # one share for the pixels of an image
    assert share.min() >= 0
    assert share.max() <= 1
    assert share[:, 0].std() > 0.2


def test_turned_images_say_by_how_much():
    x = torch.rand(8, 3, 5, 5)
    y, turns = gan.turned(x)
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for before, after, count in zip(x, y, turns.tolist(), strict=True):
        assert np.array_equal(np.rot90(before.numpy(), count, (1, 2)), after.numpy())


def test_ssgan_tells_turns_of_real_images_in_one_step_and_of_made_ones_in_the_other(monkeypatch):
    trained = MODELS["ssgan"].build(setting("ssgan"))
    real, told = torch.rand(8, 3, 32, 32) * 0 + 0.75, []
    original = gan.turn_loss
    monkeypatch.setattr(gan, "turn_loss", lambda d, x: told.append(bool((x == 0.75).all())) or original(d, x))
    losses = trained.step([(real, torch.zeros(8, dtype=torch.int64))])
    assert told == [True, False]
    assert trained.extras.turns == (1.0, 0.2)
    assert {"d", "d_turns", "g", "g_turns"} <= set(losses)


def test_the_bound_of_the_vae_is_that_of_gaussians():
    """Up to the constant log(2 pi e) / 2 per pixel, at the optimal variance."""
    x, decoded = torch.rand(6, 3, 4, 4), torch.rand(6, 3, 4, 4)
    mean, log_var = torch.randn(6, 5), torch.randn(6, 5)
    posterior = torch.distributions.Normal(mean, (log_var / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1)).sum(1).mean()
    deviation = (x - decoded).square().mean().sqrt()
    likelihood = -torch.distributions.Normal(decoded, deviation).log_prob(x).sum((1, 2, 3)).mean()
    terms = vae.bound(x, decoded, mean, log_var)
    assert terms["divergence"].item() == pytest.approx(divergence.item(), rel=1e-5)
    constant = 48 * 0.5 * np.log(2 * np.pi * np.e)
    assert terms["reconstruction"].item() + constant == pytest.approx(likelihood.item(), rel=1e-5)


class Recorded(nn.Module):
    """A UNet that gives fixed outputs and keeps its inputs."""

    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self.out, self.seen = out, []

    def forward(self, x, t, class_labels=None):
        self.seen.append((x, t))
        return type("Output", (), {"sample": self.out})


def test_the_loss_of_edm_is_its_equation_8():
    """lambda(sigma) ||D(x + n; sigma) - x||^2 with D = c_skip x + c_out F(c_in x, c_noise), by the paper's table 1."""
    pytest.importorskip("diffusers")
    trained = MODELS["edm"].build(setting("edm"))
    x, out = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, 3, 32, 32)
    trained.unet = Recorded(out)
    loss = trained.loss(x, torch.zeros(4, dtype=torch.int64))
    ((scaled, c_noise),) = trained.unet.seen
    sigma = (4 * c_noise).exp().view(-1, 1, 1, 1).double()
    noisy = scaled.double() * (sigma**2 + 0.25).sqrt()
    denoised = 0.25 / (sigma**2 + 0.25) * noisy + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * out.double()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert loss.item() == pytest.approx((weight * (denoised - x) ** 2).mean().item(), rel=1e-4)
    assert ((noisy - x) / sigma).std().item() == pytest.approx(1, abs=0.05)


def test_the_loss_of_ddpm_is_the_error_of_the_predicted_noise():
    pytest.importorskip("diffusers")
    trained = MODELS["ddpm"].build(setting("ddpm"))
    x, out = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, 3, 32, 32)
    trained.unet = Recorded(out)
    loss = trained.loss(x, torch.zeros(4, dtype=torch.int64))
    ((noisy, t),) = trained.unet.seen
    kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[t].view(-1, 1, 1, 1)
    noise = (noisy - kept.sqrt() * x) / (1 - kept).sqrt()
    assert loss.item() == pytest.approx(((out - noise) ** 2).mean().item(), rel=1e-3)


# Layers


@pytest.mark.parametrize(
    "layer", [nn.Linear(7, 5), nn.Conv2d(3, 6, 3), nn.Embedding(4, 9)], ids=lambda x: type(x).__name__
)
def test_spectral_norm_divides_by_the_largest_singular_value(layer):
    u, values, v = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    values[0] *= 2  # whatever was drawn, the power iteration finds the first one soon
    with torch.no_grad():
        layer.weight.copy_((u @ torch.diag(values) @ v).view_as(layer.weight))
    weight = layer.weight.detach().flatten(1).numpy().copy()
    holder = nn.Sequential(layer)
    add_spectral_norms(holder)
    bake_spectral_norms(holder)
    assert not parametrize.is_parametrized(holder[0])
    largest = np.linalg.svd(weight, compute_uv=False)[0]
    assert np.allclose(holder[0].weight.detach().flatten(1).numpy(), weight / largest, rtol=1e-4, atol=1e-6)


def test_spectral_norms_are_in_float32_and_once_for_all_calls_where_convolutions_are_in_bf16():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    add_spectral_norms(network)
    u = network[0].parametrizations.weight[0]._u
    before = u.clone()
    with computing(network, "bf16"):
        weight, after = network[0].weight, u.clone()
        out = network(torch.rand(2, 3, 4, 4))
        network(torch.rand(2, 3, 4, 4))
    assert weight.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert not torch.equal(before, after)
    assert torch.equal(after, u)


def test_the_generator_of_biggan_has_spectral_norms_but_for_scales_of_classes():
    generator = MODELS["biggan"].build(setting("biggan")).networks["generator"]
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert parametrize.is_parametrized(module)
        if isinstance(module, BatchNorm) and module.embed is not None:
            assert not parametrize.is_parametrized(module.embed)


def test_the_class_enters_the_logit_by_projection():
    trunk = nn.Flatten()
    network = Discriminator(trunk, 12, num_classes=3)
    x, y = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 1, 0])
    unconditional = network.real(x.flatten(1)).squeeze(1)
    expected = unconditional + torch.einsum("nf,nf->n", network.of_class.weight[y], x.flatten(1))
    assert torch.allclose(network(x, y), expected, atol=1e-5)


def test_batch_norm_of_classes_scales_and_shifts_by_class():
    norm = BatchNorm(2, 3).eval()
    with torch.no_grad():
        norm.embed.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [2, 3, 0, 0], [1, 1, 5, 7]]))
    x = torch.ones(3, 2, 1, 1)
    out = norm(x, torch.tensor([0, 1, 2])).flatten(1)
    assert torch.allclose(out, torch.tensor([[1.0, 1], [2, 3], [6, 8]]), atol=1e-4)


COUNTS = {  # model and recipe: millions of parameters of the generator, and of the discriminator
    ("sngan", "cpu"): (1.22, 1.47),
    ("sngan", "published"): (4.28, 1.05),
    ("wgan-gp", "published"): (4.28, 1.05),
    ("edm", "cpu"): (2.25, None),
    ("ddpm", "published"): (35.75, None),
}


@pytest.mark.parametrize(("model", "recipe"), COUNTS)
def test_networks_have_their_published_sizes(model, recipe):
    if model in DIFFUSERS:
        pytest.importorskip("diffusers")
    width = MODELS[model].recipes[recipe].width
    networks = MODELS[model].build(setting(model, num_classes=10, width=width, recipe=recipe)).networks
    for name, expected in zip(("generator", "discriminator"), COUNTS[model, recipe], strict=True):
        if expected:
            assert sum(p.numel() for p in networks[name].parameters()) / 1e6 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("model", [name for name in MODELS if "cpu" in MODELS[name].recipes])
def test_networks_for_two_cores_are_files_of_8_mib_at_most(model):
    if model in DIFFUSERS:
        pytest.importorskip("diffusers")
    width = MODELS[model].recipes["cpu"].width
    for network in MODELS[model].build(setting(model, 10, width)).networks.values():
        assert 2 * sum(p.numel() for p in network.parameters()) < 8 * 2**20


# DiffAugment


def test_augmentation_moves_and_cuts_each_image_differently_and_nothing_else():
    x = torch.rand(64, 3, 32, 32) + 0.5
    moved = augment.translate(x)
    for before, after in zip(x, moved, strict=True):
        shifts = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if torch.equal(after[:, max(dy, 0) : 32 + min(dy, 0), max(dx, 0) : 32 + min(dx, 0)],
                           before[:, max(-dy, 0) : 32 + min(-dy, 0), max(-dx, 0) : 32 + min(-dx, 0)])
        ]  # fmt: skip
        assert len(shifts) == 1
        dy, dx = shifts[0]
        assert (after == 0).sum() == 3 * (32 * 32 - (32 - abs(dy)) * (32 - abs(dx)))
    cut = augment.cut_out(x)
    assert ((cut == x) | (cut == 0)).all()
    holes = (cut[:, 0] == 0).flatten(1).sum(1)
    assert holes.max() == 16 * 16
    assert holes.min() >= 8 * 8
    assert len((cut[:, 0] == 0).flatten(1).unique(dim=0)) > 32


@pytest.mark.parametrize("change", [augment.translate, augment.cut_out, augment.color], ids=lambda f: f.__name__)
def test_augmentation_is_differentiable(change):
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def seeded(x):
        torch.manual_seed(3)
        return change(x)

    assert torch.autograd.gradcheck(seeded, x)


def test_real_and_made_images_are_changed_alike_in_both_steps():
    trained = MODELS["diff-biggan"].build(setting("diff-biggan"))
    seen, original = [], trained.extras.augment
    trained.extras = gan.Extras(augment=lambda x: seen.append(x.detach()) or original(x))
    x, y = torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    trained.step([(x, y)])
    assert [len(one) for one in seen] == [16, 8]  # real and made together; made ones
    assert torch.equal(seen[0][:8], x)


# Steps


@pytest.mark.parametrize("model", GANS)
def test_each_step_moves_its_own_network_on_fresh_noise(model):
    trained = MODELS[model].build(setting(model))
    networks = trained.networks
    start = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    x, y = torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8) % 3
    trained._discriminator_step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(start["generator"], networks["generator"].parameters(), strict=True))
    after = [p.detach().clone() for p in networks["discriminator"].parameters()]
    assert sum(not torch.equal(a, b) for a, b in zip(start["discriminator"], after, strict=True)) > len(after) / 2
    trained._generator_step(8)
    assert all(torch.equal(a, b) for a, b in zip(after, networks["discriminator"].parameters(), strict=True))
    moved = zip(start["generator"], networks["generator"].parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in moved) > len(after) / 2
    assert all(p.requires_grad for p in networks.parameters())


def test_the_learning_rate_rises_and_falls_as_the_recipe_says(data, tmp_path):
    recipe = recipe_of(config(data, tmp_path, "vae", steps=1000))
    assert [round(recipe.lr_factor(step), 6) for step in (0, 149, 299, 500, 999)] == [
        round(1 / 300, 6), round(0.5 * 0.851, 6), 0.701, 0.5, 0.001,
    ]  # fmt: skip
    assert recipe_of(config(data, tmp_path, "sngan")).lr_factor(3) == 1
    published = recipe_of(config(data, tmp_path, "sngan", recipe="published", steps=None))
    assert published.lr_factor(50_000) == 0.5


# Runs


@pytest.mark.parametrize("model", MODELS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(data, tmp_path, model, monkeypatch):
    whole = train_generator(config(data, tmp_path / "whole", model))
    stopped = config(data, tmp_path / "stopped", model)
    original = Run.step

    def step(self, log):
        original(self, log)
        if self.state.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step)
        with pytest.raises(Interrupted):
            train_generator(stopped)
    assert not list((tmp_path / "stopped").glob("*.safetensors"))
    continued = train_generator(stopped)
    assert made(tmp_path / "whole") == made(tmp_path / "stopped")
    assert continued["passes"] == whole["passes"]
    rows = [
        re.sub('"images_per_s".*', "", (tmp_path / name / "metrics.jsonl").read_text()) for name in ("whole", "stopped")
    ]
    assert rows[0] == rows[1] != ""


PROCESSES = multiprocessing.get_context("forkserver")


def train_with(threads: int, about: GeneratorConfig) -> None:
    """In a process of its own, which would otherwise take the machine's threads: other sums, other last bits."""
    torch.set_num_threads(threads)
    train_generator(about)


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(data, tmp_path):
    changed = {"steps": 60, "save_minutes": 1e-4, "width": 4}
    train_generator(config(data, tmp_path / "whole", **changed))
    killed = config(data, tmp_path / "killed", **changed)
    process = PROCESSES.Process(target=train_with, args=(torch.get_num_threads(), killed))
    process.start()
    state = tmp_path / "killed" / "state.pt"
    while process.is_alive() and not state.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode != 0, "the run ended by itself"
    train_generator(killed)
    assert made(tmp_path / "whole") == made(tmp_path / "killed")


def test_batches_go_once_over_the_images_in_another_order_each_epoch(data):
    from benchmarks.generators.batches import Batches

    batches = Batches(str(data), 8, 0, torch.device("cpu"), flip=False)
    epochs = [torch.cat([batches(6 * epoch + k)[0] for k in range(6)]) for epoch in range(2)]
    assert not torch.equal(*epochs)
    assert len(torch.cat(epochs).flatten(1).unique(dim=0)) == 48
    assert torch.equal(batches(3)[0], batches(3)[0])
    assert epochs[0].min() >= -1
    assert epochs[0].max() <= 1
    flipped = Batches(str(data), 8, 0, torch.device("cpu"), flip=True)(0)[0]
    plain = batches(0)[0]
    same = [torch.equal(a, b) for a, b in zip(flipped, plain, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(flipped, plain, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert any(mirrored)


def test_the_average_trails_and_its_statistics_are_those_of_its_own_images(data, tmp_path):
    training = Run(config(data, tmp_path / "run"))
    raw, ema, seen = training.trained.networks["generator"], training.ema.model, []
    with torch.no_grad():
        for parameter in raw.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    first = ema.linear.weight.clone()
    training.ema.update(raw, 8)
    assert torch.allclose(ema.linear.weight, first.lerp(raw.linear.weight, 0.5), atol=1e-6)
    ema.norms[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ready = training._ready(20)
    assert torch.equal(ready.linear.weight, ema.linear.weight)
    assert len(seen) == 20
    assert torch.allclose(ready.norms[0].norm.running_mean, torch.cat(seen).mean((0, 2, 3)), atol=1e-5)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    assert torch.allclose(ready.norms[0].norm.running_var, variance, rtol=1e-4)
    assert not torch.allclose(ema.norms[0].norm.running_var, variance, rtol=0.1)
    assert training.trained.networks.training


def test_minutes_end_a_run_which_more_minutes_continue(data, tmp_path, capsys):
    short = train_generator(config(data, tmp_path / "run", minutes=1e-9))
    assert short["steps"] == 0
    long = train_generator(config(data, tmp_path / "run", minutes=10))
    assert long["steps"] == 4
    assert long["images"] == 32
    assert train_generator(config(data, tmp_path / "run")) == long
    assert "already finished, at step 4" in capsys.readouterr().err
    more = train_generator(config(data, tmp_path / "run", steps=6))
    assert more["steps"] == 6
    whole = train_generator(config(data, tmp_path / "whole", steps=6))
    assert made(tmp_path / "run") == made(tmp_path / "whole")
    assert more["passes"] == whole["passes"] == {"generator": 6 * 16, "discriminator": 6 * 24}


def test_a_diffusion_run_that_is_given_more_steps_replaces_its_pipeline(data, tmp_path):
    train_generator(config(data, tmp_path / "run", "edm", steps=1))
    train_generator(config(data, tmp_path / "run", "edm", steps=2))
    train_generator(config(data, tmp_path / "whole", "edm", steps=2))
    assert made(tmp_path / "run") == made(tmp_path / "whole")


BAD = {
    "recipe": ({"model": "biggan", "recipe": "cpu"}, "recipe: 'cpu' is none of published"),
    "batch": ({"batch_size": 49}, "batch_size: 49, but .* has 48 images"),
    "another model": ({"model": "sngan"}, "holds a run with another model"),
    "another width": ({"width": 4}, "holds a run with another width .8 there, 4 now"),
    "another seed": ({"seed": 3}, "holds a run with another seed"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_loses_nothing(data, tmp_path, case):
    changed, message = BAD[case]
    train_generator(config(data, tmp_path / "run", steps=1))
    before = made(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        train_generator(config(data, tmp_path / "run", **{"steps": 1, **changed}))
    assert made(tmp_path / "run") == before


def test_images_of_another_size_are_one_line(tmp_path):
    pixels, labels = tiny_pixels(16)
    np.savez(tmp_path / "small.npz", arr_0=pixels, arr_1=labels)
    with pytest.raises(UserError, match="images of 16 pixels; these networks make 32"):
        train_generator(config(tmp_path / "small.npz", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_state(data, tmp_path, monkeypatch):
    first = config(data, tmp_path / "run", steps=2)
    train_generator(first)
    before = (tmp_path / "run" / "state.pt").read_bytes()
    nan = gan.Loss(lambda real: real.mean() * float("nan"), lambda fake: fake.mean(), lambda fake: fake.mean())
    monkeypatch.setitem(gan.LOSSES, "hinge", nan)
    with pytest.raises(UserError, match="step 3: the loss d is nan"):
        train_generator(config(data, tmp_path / "run", steps=4))
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


# What comes of a run


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """The folder of a finished run of a model."""
    folder, there = tmp_path_factory.mktemp("runs"), set()

    def of(model: str) -> Path:
        if model not in there:
            train_generator(config(data, folder / model, model, steps=2))
            there.add(model)
        return folder / model

    return of


@pytest.mark.parametrize("model", GANS)
def test_opened_networks_give_logits_and_gradients_of_z(runs, model):
    generator, discriminator = open_run(runs(model))
    z = torch.randn(4, *generator.z_shape, requires_grad=True)
    y = [] if generator.num_classes is None else [torch.tensor([0, 1, 2, 0])]
    assert (generator.num_classes is not None) == (model in OF_CLASSES)
    x = generator(z, *y)
    assert x.shape == (4, 3, 32, 32)
    (gradient,) = torch.autograd.grad(discriminator(x, *y).sum(), z)
    assert gradient.abs().sum() > 0
    assert not any(parametrize.is_parametrized(m) for network in (generator, discriminator) for m in network.modules())
    weights = load_file(runs(model) / "discriminator.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    if model != "wgan-gp":
        for name, weight in weights.items():
            if name.endswith("weight"):
                assert np.linalg.svd(weight.float().flatten(1), compute_uv=False)[0] == pytest.approx(1, abs=0.02)


def test_a_vae_has_no_discriminator_and_a_diffusion_model_no_latent(runs, tmp_path):
    generator, discriminator = open_run(runs("vae"))
    assert discriminator is None
    images = generator(torch.randn(2, 64), torch.tensor([0, 1]))
    assert 0 <= images.min() < images.max() <= 1
    with pytest.raises(UserError, match="holds no generator"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="is a diffusion model; open it with diffusers:"):
        open_run(runs("edm"))


@pytest.mark.parametrize("model", ["cgan-pd", "sngan", "vae", "dcgan", "diff-biggan"])
def test_refine_takes_the_program_and_makes_the_images_of_the_samples(checkpoint, runs, tmp_path, model):
    summary = sample(SampleConfig(run=runs(model), out=tmp_path / "s.npz", num_images=6, export=tmp_path / "g.pt2"))
    assert summary["n"] == 6
    words = summary["flags"].split()
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    flags = {name[2:].replace("-", "_"): value for name, value in flags.items()}
    raw = tmp_path / "raw.npz"
    assert refine(checkpoint, words[1], tmp_path / "out.npz", keep_raw=raw, num_images=6, **flags) == 0
    own, its = open_images(tmp_path / "s.npz"), open_images(raw)
    assert (own.read(0, 6).int() - its.read(0, 6).int()).abs().max() <= 1  # a program's kernels round otherwise
    assert (own.labels is None) == (its.labels is None) == (model not in OF_CLASSES)
    if own.labels is not None:
        assert own.labels.tolist() == its.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("model", ["edm", "ddpm"])
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_refine_opens_the_folder_of_a_diffusion_model(checkpoint, runs, tmp_path, model):
    steps = {"edm": 3, "ddpm": 4}[model]
    summary = sample(SampleConfig(run=runs(model), out=tmp_path / "s.npz", num_images=3, steps=steps))
    assert summary["n"] == 3
    spec, raw = f"diffusers:{runs(model) / 'pipeline'}", tmp_path / "raw.npz"
    flags = {"num_images": 3, "generator_steps": steps, "trust": "false"}
    assert refine(checkpoint, spec, tmp_path / "out.npz", keep_raw=raw, **flags) == 0
    own, its = open_images(tmp_path / "s.npz"), open_images(raw)
    assert torch.equal(own.read(0, 3), its.read(0, 3))
    assert (its.labels is None) == (model == "ddpm")


SHIPPED = sorted(folder.name for folder in TRAINED.iterdir() if folder.is_dir())
SHIPPED_GANS = [name for name in SHIPPED if name not in DIFFUSERS]


@pytest.mark.parametrize("model", SHIPPED)
def test_the_bundled_samples_are_those_of_the_generator_in_the_repository(tmp_path, model):
    if model in DIFFUSERS:
        pytest.importorskip("diffusers")
    n = 20 if model in DIFFUSERS else 64
    sample(SampleConfig(run=TRAINED / model, out=tmp_path / "s.npz", num_images=n, device="cpu"))
    with np.load(tmp_path / "s.npz") as made, np.load(PRETRAINED / f"{model}-cifar10.npz") as bundled:
        difference = made["arr_0"].astype(int) - bundled["arr_0"][:n]
        assert ("arr_1" in made) == ("arr_1" in bundled) == (model in OF_CLASSES)
        if model in OF_CLASSES:
            assert np.array_equal(made["arr_1"], bundled["arr_1"][:n])
        assert len(bundled["arr_0"]) == 256
    assert np.abs(difference).max() <= (24 if model in DIFFUSERS else 3)  # other processors round otherwise
    assert np.abs(difference).mean() < (1 if model in DIFFUSERS else 0.1)


@pytest.mark.parametrize("model", SHIPPED)
def test_generators_in_the_repository_are_files_of_8_mib_at_most(model):
    assert sum(file.stat().st_size for file in (TRAINED / model).rglob("*") if file.is_file()) < 8 * 2**20


@pytest.mark.parametrize("model", SHIPPED_GANS)
def test_a_discriminator_in_the_repository_tells_real_images_from_made_ones(model):
    generator, discriminator = open_run(TRAINED / model)
    with np.load(PRETRAINED / "cifar10-test-500.npz") as real:
        x = torch.from_numpy(real["arr_0"][:100]).permute(0, 3, 1, 2).float() / 127.5 - 1
        y = torch.from_numpy(real["arr_1"][:100])
    torch.manual_seed(0)
    z, of = torch.randn(100, *generator.z_shape), [y] if model in OF_CLASSES else []
    assert discriminator(x, *of).mean() > discriminator(generator(z, *of), *of).mean() + 0.2
    if of:  # and classes from other ones
        assert discriminator(x, y).mean() > discriminator(x, (y + 1) % 10).mean() + 0.2


BAD_SAMPLES = {
    "nothing asked": ({}, "out: give --out FILE.npz"),
    "no samples to score": ({"export": "g.pt2", "score": "real.npz"}, "out: give --out FILE.npz"),
    "steps of a GAN": ({"out": "s.npz", "steps": 5}, "steps: .* is no diffusion model"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_what_sampling_cannot_do_is_one_line(runs, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    flags, message = BAD_SAMPLES[case]
    with pytest.raises(UserError, match=message):
        sample(
            SampleConfig(run=runs("sngan"), **{k: Path(v) if k in ("out", "export") else v for k, v in flags.items()})
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if "published" in MODELS[name].recipes])
def test_a_published_recipe_runs_a_step(data, tmp_path, model):
    """At its published width; four images at once."""
    small = {"steps": 1, "batch_size": 4, "recipe": "published", "width": None, "log_every": 1}
    assert train_generator(config(data, tmp_path / "run", model, **small))["steps"] == 1
