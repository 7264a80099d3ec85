"""Classifiers of noised images: what the network is told, how it is trained, and how it guides a sampler."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from refine import Guidance
from refine.cli import main as refine_main
from robust_models import UserError, load, save
from robust_models.architectures import build
from robust_models.architectures.noised import PIXEL_STD, AtNoise, is_noised
from robust_models.classifier import Description, RobustClassifier
from robust_models.runtime.config import resolve
from tests.tiny import CLASSES, SIZE, tiny_classifier
from train.augment import diffusion_noise, noise_for, under
from train.config import TrainConfig
from train.loop import train

X = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])
pytestmark = pytest.mark.filterwarnings("ignore:__array_")  # of diffusers' schedulers under numpy 2
SIGMA = torch.tensor([0.0, 0.1, 1.0, 30.0])


def noised_classifier(seed: int = 0) -> RobustClassifier:
    """With weights, of the fourth channel too, at which the noise matters."""
    torch.manual_seed(seed)
    model = RobustClassifier.from_description(Description("noised_preact_resnet10_w8", CLASSES, SIZE))
    torch.nn.init.normal_(next(model.network.parameters()), std=0.3)
    return model.eval().requires_grad_(False)


def test_a_fresh_network_is_the_plain_one_of_the_pixels_brought_to_scale():
    noised = build("noised_preact_resnet10_w8", num_classes=3).eval()
    plain = build("preact_resnet10_w8", num_classes=3).eval()
    state = {name.removeprefix("network."): value for name, value in noised.state_dict().items()}
    plain.load_state_dict({n: v[:, :3] if n == "stem.weight" else v for n, v in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(noised(X), plain(X))
        noised.sigma = SIGMA
        scale = (1 + (SIGMA / PIXEL_STD) ** 2).sqrt().view(-1, 1, 1, 1)
        torch.testing.assert_close(noised(X), plain(X / scale))


@pytest.mark.parametrize(
    "arch", ["noised_resnet18_w4", "noised_wide_resnet_10_1", "noised_vgg11", "noised_densenet121"]
)
def test_families_of_convolutions_can_be_told(arch):
    network = build(arch, num_classes=3)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert next(weight for weight in network.parameters() if weight.ndim == 4).shape[1] == 4


def test_each_image_is_told_its_own_noise_and_afterwards_none():
    model = noised_classifier()
    told = AtNoise(model, SIGMA)(X)
    for i, sigma in enumerate(SIGMA):
        torch.testing.assert_close(told[i], AtNoise(model, sigma)(X[i : i + 1])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(told[0], model(X)[0], rtol=1e-4, atol=1e-4)  # no noise is what it takes for granted
    assert not torch.allclose(told[1:], model(X)[1:], atol=1e-3)
    with pytest.raises(RuntimeError):
        AtNoise(model, SIGMA)(X[:, :, :1, :0])
    torch.testing.assert_close(model(X)[0], told[0], rtol=1e-4, atol=1e-4)


def test_the_noise_is_that_of_ddpm():
    diffusers = pytest.importorskip("diffusers")
    kept = diffusers.DDPMScheduler().alphas_cumprod.double()
    torch.testing.assert_close(
        diffusion_noise(torch.device("cpu")).double(), ((1 - kept) / kept).sqrt() / 2, rtol=1e-3, atol=0
    )


def test_training_draws_a_level_for_each_image_and_tells_it():
    config = resolve(TrainConfig, {"out": "run", "noised": True}, {})
    x, model = torch.zeros(2000, 3, 2, 2), noised_classifier()
    noise = noise_for(config, x, 2000, torch.Generator().manual_seed(1))
    assert noise.values.shape == (2000, 1, 3, 2, 2)
    levels = diffusion_noise(x.device)
    assert torch.isin(noise.sigma, levels).all()
    assert len(noise.sigma.unique()) > 700
    measured = (noise.values.flatten(1) / noise.sigma[:, None]).std()
    assert measured == pytest.approx(1, abs=0.02)
    again = noise_for(config, x, 2000, torch.Generator().manual_seed(1))
    assert torch.equal(again.values, noise.values)
    few = noise_for(config, X, 4, torch.Generator().manual_seed(2))
    expected = AtNoise(model, few.sigma)(X + few.values[:, 0]).log_softmax(1)
    torch.testing.assert_close(under(few, model)(X), expected)


def test_a_classifier_that_is_trained_so_loads_refines_and_goes_on(labelled_npz, tmp_path, capsys):
    fields = {
        "arch": "preact_resnet10_w8",
        "epochs": 1,
        "batch_size": 16,
        "noised": True,
        "precision": "fp32",
        "device": "cpu",
        "attack": {"eps": 0.5, "step_size": 0.5, "steps": 1},
        "data": {"path": str(labelled_npz), "validation": 16},
    }
    summary = train(resolve(TrainConfig, {**fields, "out": str(tmp_path / "run")}, {}))
    assert {"noisy_accuracy", "robust_accuracy"} <= set(summary["validation"])
    model = load(summary["checkpoint"])
    assert (model.description.arch, is_noised(model)) == ("noised_preact_resnet10_w8", True)
    words = ["--ckpt", summary["checkpoint"], "--input", str(labelled_npz), "--out", str(tmp_path / "new.npz")]
    assert refine_main([*words, "--eps", "0.5", "--limit", "4", "--device", "cpu"]) == 0
    further = {**fields, "init": summary["checkpoint"], "arch": None, "out": str(tmp_path / "further")}
    assert train(resolve(TrainConfig, further, {}))["steps"] == summary["steps"]
    capsys.readouterr()


def test_guidance_goes_up_the_gradient_at_the_noisy_image():
    model, sigma, scale = noised_classifier(), 3.0, 2.0
    x0 = 2 * X - 1
    noisy = x0 + sigma * torch.randn(X.shape, generator=torch.Generator().manual_seed(5))
    pixels = ((noisy + 1) / 2).requires_grad_()
    loss = F.cross_entropy(AtNoise(model, torch.tensor(sigma / 2))(pixels), Y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    expected = (x0 - scale * sigma**2 * gradient / 2).clamp(-1, 1)
    guidance = Guidance(model, scale=scale, sigmas=(0, math.inf))
    torch.testing.assert_close(guidance(x0, sigma, Y, noisy), expected)
    assert not torch.allclose(expected, x0, atol=1e-4)
    with pytest.raises(UserError, match=r"classifier is one of noised images; pass them: guidance\(x0, sigma, y, x\)"):
        guidance(x0, sigma, Y)
    assert Guidance(model, eps=0.5, sigmas=(0, math.inf))(x0, sigma, Y).shape == x0.shape  # of estimates, as any


SCHEDULERS = {"DDPMScheduler": "epsilon", "DDIMScheduler": "v_prediction", "EulerDiscreteScheduler": "epsilon"}


@pytest.mark.parametrize(("name", "kind"), SCHEDULERS.items())
def test_a_scheduler_shows_the_noisy_image_at_the_scale_of_the_picture(name, kind):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(prediction_type=kind)
    scheduler.set_timesteps(6)
    seen = []

    class Watched(Guidance):
        def __call__(self, x0, sigma, y, x=None):
            seen.append((x0, sigma, x))
            return super().__call__(x0, sigma, y, x)

    t = scheduler.timesteps[3]
    noise, picture = torch.randn(X.shape, generator=torch.Generator().manual_seed(6)), 2 * X - 1
    x = scheduler.add_noise(picture, noise, t[None].expand(len(X)))
    scheduler.scale_model_input(x, t)
    said = noise if kind == "epsilon" else scheduler.get_velocity(picture, noise, t[None].expand(len(X)))
    Watched(noised_classifier(), scale=1.0, sigmas=(0, math.inf)).output(copy.deepcopy(scheduler), said, t, x, Y)
    ((x0, sigma, shown),) = seen
    torch.testing.assert_close(x0, picture.clamp(-1, 1), rtol=0, atol=1e-3)
    torch.testing.assert_close(shown, picture + sigma * noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"smoothing": {"sigma": 0.25}}, "smoothing.sigma: does not go with noised"),
        ({"compile": True}, "compile: does not go with noised"),
        (
            {"objective": {"name": "energy"}, "init": "cifar10-l2-small"},
            "noised: does not go with objective.name=energy",
        ),
    ],
)
def test_what_does_not_go_with_it(fields, message):
    with pytest.raises(UserError, match=message):
        resolve(TrainConfig, {"out": "run", "noised": True, **fields}, {})


def test_what_cannot_be_told_of_noise_is_one_line(labelled_npz, tmp_path):
    with pytest.raises(UserError, match="noise: the classifier cannot be told of it; train one with bigroc train --no"):
        AtNoise(tiny_classifier(), torch.tensor(1.0))
    for arch in ("noised_clip_vit_p4_i32_w8_l1_d8x", "noised_noised_vgg11", "noised_nothing"):
        with pytest.raises(UserError, match="arch"):
            build(arch, num_classes=3)
    save(tiny_classifier(), tmp_path / "plain.safetensors")
    fields = {"init": str(tmp_path / "plain.safetensors"), "noised": True, "batch_size": 4, "device": "cpu"}
    fields |= {"data": {"path": str(labelled_npz), "validation": 4}, "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"init: \S+ is no network that can be told of noise"):
        train(resolve(TrainConfig, fields, {}))
