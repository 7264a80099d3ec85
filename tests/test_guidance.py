"""The classifier inside a sampler: what each scheduler is told, how far estimates move, and what comes of it."""

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robust_models
from refine import Guidance, bigroc
from robust_models import open_images
from robust_models.errors import UserError
from tests.test_generators import complaint, everything, manifest, pixels, run
from tests.test_generators_diffusers import STEPS, _here, save  # noqa: F401  (the fixture)
from tests.tiny import CLASSES, SIZE, tiny_classifier

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array_")  # of diffusers' schedulers under numpy 2
EVERYWHERE = (0.0, math.inf)
SHAPE = (2, 3, SIZE, SIZE)
KINDS = {  # scheduler -> what networks may predict for it
    "DDPMScheduler": ("epsilon", "v_prediction", "sample"),
    "DDIMScheduler": ("epsilon", "v_prediction", "sample"),
    "EulerDiscreteScheduler": ("epsilon", "v_prediction", "sample"),
    "EulerAncestralDiscreteScheduler": ("epsilon", "v_prediction"),
    "HeunDiscreteScheduler": ("epsilon", "v_prediction", "sample"),
    "LMSDiscreteScheduler": ("epsilon", "v_prediction", "sample"),
    "DPMSolverMultistepScheduler": ("epsilon", "v_prediction", "sample"),
    "DPMSolverSinglestepScheduler": ("epsilon", "v_prediction", "sample"),
    "DEISMultistepScheduler": ("epsilon", "v_prediction", "sample"),
    "UniPCMultistepScheduler": ("epsilon", "v_prediction", "sample"),
    "EDMEulerScheduler": ("epsilon", "v_prediction"),
    "EDMDPMSolverMultistepScheduler": ("epsilon", "v_prediction"),
}
PAIRS = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]
OF_ONE_STEP = [(name, kind) for name, kind in PAIRS if "Solver" not in name and "Multistep" not in name]


class Towards(Guidance):
    """Moves every estimate all the way to one picture, and remembers what it moved."""

    def __init__(self, picture: Tensor) -> None:
        self.picture, self.seen, self.sigmas = picture, [], EVERYWHERE

    def __call__(self, x0: Tensor, sigma: float, y: Tensor, x: Tensor | None = None) -> Tensor:
        self.seen.append((x0, sigma))
        return self.picture


def scheduler_of(name: str, kind: str, **settings):
    scheduler = getattr(diffusers, name)(prediction_type=kind, **settings)
    scheduler.set_timesteps(6)
    return scheduler


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def sampled(scheduler, x: Tensor) -> Tensor:
    """From a network that says anything."""
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(noise(i), t, x).prev_sample
    return x


# Any scheduler


def test_every_scheduler_that_is_known_is_tested():
    from refine.guidance import PREDICTIONS, SCHEDULERS

    assert set(KINDS) == set(SCHEDULERS)
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(PREDICTIONS)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_sampler_ends_at_the_picture_that_all_its_estimates_are_moved_to(name, kind):
    """Only if noise and picture are told apart at each step as the scheduler does; DEIS leaves its last noise."""
    picture = noise(7).clamp(-1, 1)
    guided = Towards(picture).around(scheduler_of(name, kind), torch.zeros(2, dtype=torch.int64))
    end = sampled(guided, noise(8) * guided.init_noise_sigma)
    torch.testing.assert_close(end, picture, rtol=0, atol=0.1 if name.startswith("DEIS") else 1e-5)


@pytest.mark.parametrize(("name", "kind"), OF_ONE_STEP)
def test_the_estimate_that_is_moved_is_the_one_that_the_scheduler_has(name, kind):
    """Where its step says which that is; those that use several steps do not."""
    scheduler = scheduler_of(name, kind)
    guide = Towards(torch.zeros(SHAPE))
    t, x, said = scheduler.timesteps[0], noise(8) * scheduler.init_noise_sigma, noise(9)
    scheduler.scale_model_input(x, t)
    guide.output(copy.deepcopy(scheduler), said, t, x, torch.zeros(2, dtype=torch.int64))
    stepped = scheduler.step(said, t, x)
    own = stepped.pred_original_sample
    scale = max(1.0, float(own.abs().max()))
    torch.testing.assert_close(guide.seen[0][0] / scale, own / scale, rtol=0, atol=1e-5)


def test_where_it_does_not_guide_no_bit_changes():
    scheduler = scheduler_of("DDIMScheduler", "epsilon")
    guide = Guidance(tiny_classifier(), eps=1, sigmas=(1e-9, 1e-8))
    x = noise(8)
    assert torch.equal(sampled(guide.around(scheduler, torch.zeros(2, dtype=torch.int64)), x), sampled(scheduler, x))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_variances_that_a_network_learns_stay(kind):
    scheduler = scheduler_of("DDPMScheduler", kind, variance_type="learned_range")
    said = torch.cat([noise(1), noise(2)], dim=1)
    guide = Guidance(tiny_classifier(), eps=1, sigmas=EVERYWHERE)
    told = guide.output(scheduler, said, scheduler.timesteps[-1], noise(3), torch.tensor([0, 1]))
    assert told.shape == said.shape
    assert torch.equal(told[:, 3:], said[:, 3:])
    assert not torch.equal(told[:, :3], said[:, :3])


def test_a_pipeline_of_the_library_runs_with_a_guided_scheduler():
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(sample_size=SIZE, block_out_channels=(8, 16), norm_num_groups=4, **blocks)
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(100))
    pipe.set_progress_bar_config(disable=True)

    def made() -> Tensor:
        drawn = [torch.Generator().manual_seed(i) for i in range(2)]
        images = pipe(batch_size=2, generator=drawn, num_inference_steps=4, output_type="np").images
        return torch.as_tensor(images).permute(0, 3, 1, 2)

    plain, model, y = made(), tiny_classifier(), torch.tensor([1, 2])
    pipe.scheduler = Guidance(model, eps=2, steps=3, sigmas=EVERYWHERE).around(pipe.scheduler, y)
    guided = made()
    with torch.no_grad():
        before, after = (model(x).softmax(1)[torch.arange(2), y] for x in (plain, guided))
    assert (after > before).all()


# How far


class Linear(nn.Module):
    """logits = x @ w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3 * SIZE * SIZE, 3, generator=torch.Generator().manual_seed(0)) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w


@pytest.mark.parametrize(("schedule", "radius"), [("sigma", 0.25), ("constant", 0.5)])
@pytest.mark.parametrize("pixel_range", [(0, 1), (-1, 1)])
def test_an_estimate_moves_by_eps_in_pixels_of_unit_range(schedule, radius, pixel_range):
    low, high = pixel_range
    x0, y = noise(1).mul(0.1).clamp(-1, 1).mul(0.5).add(0.5) * (high - low) + low, torch.tensor([0, 2])
    guide = Guidance(Linear(), eps=0.5, steps=2, schedule=schedule, pixel_range=pixel_range)
    moved = guide(x0, 0.5, y)
    torch.testing.assert_close((moved - x0).flatten(1).norm(dim=1) / (high - low), torch.full((2,), radius))
    by_hand = bigroc(radius, steps=2)(Linear(), (x0 - low) / (high - low), y) * (high - low) + low
    torch.testing.assert_close(moved, by_hand)


def test_the_plain_gradient_moves_by_scale_times_the_variance_of_the_noise():
    """The gradient of log p with respect to x0 in [-1,1] is half of that with respect to the image in [0,1]."""
    model, y = Linear(), torch.tensor([0, 2])
    x0 = (noise(1) * 0.1).requires_grad_()
    log_p = model(x0 / 2 + 0.5).log_softmax(1)[torch.arange(2), y]
    (gradient,) = torch.autograd.grad(log_p.sum(), x0)
    moved = Guidance(model, scale=0.3)(x0.detach(), 2.0, y)
    torch.testing.assert_close(moved, (x0 + 0.3 * 4 * gradient).detach())


def test_what_an_estimate_has_outside_the_range_of_pixels_is_kept():
    x0 = noise(1) * 0.1
    x0[:, 0, 0, 0] = 3.0
    moved = Guidance(Linear(), eps=0.5)(x0, 1.0, torch.tensor([0, 1]))
    assert (moved[:, 0, 0, 0] > 1.9).all()
    assert (moved - x0).flatten(1).norm(dim=1).max() <= 1 + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_and_in_any_float_type(dtype, mode):
    model = tiny_classifier()
    with mode():
        x0 = (noise(1) * 0.1).to(dtype)
        before = x0.clone()
        moved = Guidance(model, eps=1)(x0, 1.0, torch.tensor([0, 1]))
    assert moved.dtype == dtype
    assert torch.equal(x0, before)
    assert not torch.equal(moved, x0)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("steps", [1, 3])
def test_the_classifier_sees_an_image_once_for_each_step_where_it_guides(steps):
    model, count = Linear(), []
    model.register_forward_hook(lambda *_: count.append(1))
    for guide, passes in ((Guidance(model, eps=1, steps=steps), steps), (Guidance(model, scale=1), 1)):
        for sigma in (0.05, 0.1, 1.0, 3.0, 4.0):
            count.clear()
            guide(noise(1) * 0.1, sigma, torch.tensor([0, 1]))
            assert len(count) == (passes if 0.1 <= sigma <= 3 else 0)


BAD = {
    "neither": ({}, "guidance: eps is None and scale is None; give one of them"),
    "both": ({"eps": 1, "scale": 1}, "guidance: eps is 1 and scale is 1; give one of them"),
    "eps": ({"eps": -1}, "eps: "),
    "scale": ({"scale": math.nan}, "scale: nan is not a number of 0 or more"),
    "schedule": ({"eps": 1, "schedule": "sigmas"}, "schedule: 'sigmas' is none of"),
    "sigmas": ({"eps": 1, "sigmas": (3, 0.1)}, "sigmas: 3 to 0.1 holds no noise level; the lower one comes first"),
    "range": ({"eps": 1, "pixel_range": (0, 255)}, "pixel_range: (0, 255) is neither (0, 1) nor (-1, 1)"),
    "steps": ({"eps": 1, "steps": -1}, "steps: -1 is less than 0"),
    "loss": ({"eps": 1, "loss": "cee"}, "loss: 'cee' is none of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(case):
    settings, message = BAD[case]
    with pytest.raises(UserError) as caught:
        Guidance(tiny_classifier(), **settings)
    assert str(caught.value).startswith(message)


def test_schedulers_and_networks_that_are_not_known_are_refused():
    guide = Guidance(tiny_classifier(), eps=1)
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match="guidance: a PNDMScheduler is not among the schedulers that are known: DDPM"):
        guide.around(diffusers.PNDMScheduler(), y)
    flow = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(UserError, match="guidance: the network predicts flow_prediction; known are epsilon"):
        guide.around(flow, y)


# What comes of it


def nearest_label(x: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return labels[torch.cdist(x.flatten(1), images.flatten(1)).argmin(1)]


@pytest.mark.parametrize("how", [{"eps": 10}, {"scale": 30}])
def test_samples_of_a_perfect_denoiser_come_from_the_class_asked_for(how):
    """The distribution is the 500 bundled images, whose denoiser is known in closed form."""
    real = open_images(Path(robust_models.__file__).parent / "pretrained/cifar10-test-500.npz")
    images = real.read(0, len(real)).float() / 127.5 - 1
    labels = torch.as_tensor(real.labels)

    def denoised(x: Tensor, sigma: float) -> Tensor:
        near = torch.cdist(x.flatten(1), images.flatten(1)).square() / (-2 * sigma**2)
        return (near.softmax(1) @ images.flatten(1)).view_as(x)

    y = torch.arange(40) % 10
    guide = Guidance(robust_models.load("cifar10-l2-small"), sigmas=(0.1, 80), **how)
    sigmas = [*torch.logspace(math.log10(80), -2, 16).tolist(), 0.0]
    shares = []
    for guided in (False, True):
        x = 80 * torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        for sigma, following in itertools.pairwise(sigmas):
            x0 = denoised(x, sigma)
            x0 = guide(x0, sigma, y) if guided else x0
            x = x0 + following / sigma * (x - x0)
        shares.append((nearest_label(x, images, labels) == y).float().mean().item())
    assert shares[0] < 0.2
    assert shares[1] > shares[0] + 0.15


# On the command line


def flags(**more):
    return {"generator_steps": STEPS, "num_images": 6, "generator_batch": 3, "eps": 0, "guide_to": 0, **more}


def test_guidance_while_sampling_makes_classes_of_a_generator_without_any(checkpoint, tmp_path, capsys):
    save("ddim")
    how = flags(guide_eps=3, guide_steps=2, guide_schedule="constant", guide_from=100)
    assert run(checkpoint, "diffusers:pipeline", "a.npz", keep_raw="raw.npz", **how) == 0
    said = capsys.readouterr().out
    assert "guided meanwhile: l2 eps 3 (constant), 2 steps, at noise from 100 to 0" in said
    assert run(checkpoint, "diffusers:pipeline", "b.npz", **flags(guide_eps=None, guide_to=None)) == 0
    raw = open_images("raw.npz")
    assert raw.labels is not None
    assert raw.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert raw.class_names == CLASSES
    assert torch.equal(pixels("raw.npz"), pixels("a.npz"))  # eps 0: nothing but guidance
    assert open_images("b.npz").labels is None

    model = robust_models.load(checkpoint)
    y = torch.from_numpy(raw.labels)
    with torch.no_grad():
        guided, plain = (model(pixels(one) / 255.0).softmax(1)[torch.arange(6), y].mean() for one in ("a.npz", "b.npz"))
    assert guided > plain + 0.005


def test_guided_samples_do_not_depend_on_shards_and_are_refined_like_others(checkpoint, tmp_path):
    save("ddim")
    how = flags(guide_scale=20, eps=1)
    assert run(checkpoint, "diffusers:pipeline", "a.npz", keep_raw="raw.npz", **how) == 0
    assert run(checkpoint, "diffusers:pipeline", "b.npz", shard_size=2, **how) == 0
    assert run(checkpoint, None, "c.npz", input="raw.npz", num_images=None, eps=1) == 0
    assert everything(tmp_path / "a.npz")[""] == everything(tmp_path / "b.npz")[""]
    assert torch.equal(pixels("a.npz"), pixels("c.npz"))
    assert all(row["label_source"] == "given" for row in manifest(tmp_path / "a.npz"))


def test_a_network_of_classes_is_guided_to_the_class_that_it_makes(checkpoint, monkeypatch):
    save("classes")
    seen = []
    original = Guidance.__call__

    def called(self, x0, sigma, y, x=None):
        seen.append(y.tolist())
        return original(self, x0, sigma, y, x)

    monkeypatch.setattr(Guidance, "__call__", called)
    how = flags(guide_eps=1, classes="bird,airplane", guide_from=100)
    assert run(checkpoint, "diffusers:pipeline", "a.npz", **how) == 0
    assert {tuple(y) for y in seen} == {(2, 0, 2), (0, 2, 0)}
    labels = open_images("a.npz").labels
    assert labels is not None
    assert labels.tolist() == [2, 0, 2, 0, 2, 0]


def test_raw_samples_of_another_guide_are_not_taken_for_these(checkpoint, capsys):
    """Its norm and loss decide them, too; without a guide, they do not."""
    save("ddim")
    run(checkpoint, "diffusers:pipeline", "a.npz", keep_raw="raw.npz", **flags(guide_eps=1))
    assert run(checkpoint, "diffusers:pipeline", "b.npz", keep_raw="raw.npz", **flags(guide_eps=1, eps=1)) == 0
    capsys.readouterr()
    other = flags(guide_eps=1, loss="margin")
    assert run(checkpoint, "diffusers:pipeline", "c.npz", keep_raw="raw.npz", **other) == 2
    assert "raw.npz" in complaint(capsys)


BAD_FLAGS = {
    "latent": ("latent", {"guide_eps": 1}, "guide_eps: guidance is for diffusers pipelines in pixels (DDPMPipeline"),
    "both": ("ddpm", {"guide_eps": 1, "guide_scale": 2}, "guide_scale: 2, but --guide-eps guides already"),
    "no guide": ("ddpm", {"guide_steps": 2}, "guide_steps: 2 is for --guide-eps or --guide-scale; give one of them"),
    "range": ("ddpm", {"guide_eps": 1, "guide_to": 5}, "guide_to: 5 is above --guide-from 3, where it begins"),
    "scheduler": (
        "ddpm",
        {"guide_eps": 1, "generator_scheduler": "PNDMScheduler"},
        "guidance: a PNDMScheduler is not among the schedulers that are known: DDPMScheduler",
    ),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_flags_that_do_not_fit_are_one_line(checkpoint, capsys, case):
    family, how, message = BAD_FLAGS[case]
    save(family)
    capsys.readouterr()
    assert run(checkpoint, "diffusers:pipeline", "out.npz", num_images=2, **how) == 2
    assert message in complaint(capsys)
    assert not Path("out.npz").exists()


def test_functions_are_not_guided(checkpoint, capsys, monkeypatch, tmp_path):
    assert run(checkpoint, "python:my_gan:plain", "out.npz", guide_eps=1) == 2
    assert "guide_eps: is for pipelines, not for python:my_gan:plain" in complaint(capsys)
