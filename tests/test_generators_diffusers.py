"""Pipelines of diffusers as generators, tiny ones with random weights, read from a folder."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from robust_models import open_images, to_u8
from robust_models.runtime.seeds import DRAW
from robust_models.runtime.seeds import generator as seeded
from tests.test_generators import complaint, everything, pixels, run
from tests.tiny import CLASSES, SIZE

diffusers = pytest.importorskip("diffusers")
STEPS = 3
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers under numpy 2


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def unet(**settings):
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    shape = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    return diffusers.UNet2DModel(**{"sample_size": SIZE, **blocks, **shape, **settings})


def vae(channels: int = 4):
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": SIZE}
    return diffusers.AutoencoderKL(latent_channels=channels, **blocks, **shape)


def ddpm():
    return diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(100))


def ddim():
    return diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(100))


def edm():
    return diffusers.DDPMPipeline(unet(), diffusers.EDMEulerScheduler())


def of_classes():
    return diffusers.DDPMPipeline(unet(num_class_embeds=3), diffusers.EulerAncestralDiscreteScheduler(100))


def consistency():
    return diffusers.ConsistencyModelPipeline(unet(num_class_embeds=3), diffusers.CMStochasticIterativeScheduler())


def dit():
    torch.manual_seed(1)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=SIZE // 2,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(transformer, vae(), diffusers.DDIMScheduler(100))


def latent():
    from diffusers import LDMPipeline, VQModel

    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3}
    vqvae = VQModel(**blocks, **shape, num_vq_embeddings=16)
    return LDMPipeline(vqvae, unet(sample_size=SIZE // 2), diffusers.DDIMScheduler(100))


def from_text():
    transformers = pytest.importorskip("transformers")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    Path("tokenizer").mkdir()
    Path("tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    Path("tokenizer/merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer("tokenizer/vocab.json", "tokenizer/merges.txt", model_max_length=16)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(3)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=16, bos_token_id=0, eos_token_id=1, **size
    )
    conditioned = diffusers.UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.StableDiffusionPipeline(
        vae(),
        transformers.CLIPTextModel(config).eval(),
        tokenizer,
        conditioned,
        diffusers.DDIMScheduler(100, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


FAMILIES = {  # what makes the pipeline, its flags, and whether its images have classes
    "ddpm": (ddpm, {}, False),
    "ddim": (ddim, {}, False),
    "edm": (edm, {}, False),
    "classes": (of_classes, {}, True),
    "consistency": (consistency, {}, True),
    "dit": (dit, {"generator_guidance": 2}, True),
    "latent": (latent, {}, False),
    "text": (from_text, {"generator_prompt": "an old ship"}, False),
    "text of classes": (from_text, {"generator_prompt": "a photo of a {class}", "generator_guidance": 3}, True),
}


def save(family: str) -> None:
    """The pipeline in the folder "pipeline"."""
    make, _, _ = FAMILIES[family]
    make().save_pretrained("pipeline")
    if family == "dit":  # save_pretrained forgets the names of the classes, which DiT's own files have
        index = json.loads(Path("pipeline/model_index.json").read_text())
        index["id2label"] = {"7": "bird, dicky-bird", "404": "airplane", "817": "Automobile, car"}
        Path("pipeline/model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_pipeline_are_refined_and_do_not_depend_on_shards(checkpoint, tmp_path, family):
    _, flags, has_classes = FAMILIES[family]
    save(family)
    flags = {"generator_steps": STEPS, "num_images": 6, "generator_batch": 3, **flags}
    assert run(checkpoint, "diffusers:pipeline", "a.npz", keep_raw="raw.npz", trust="false", **flags) == 0
    assert run(checkpoint, "diffusers:pipeline", "b.npz", trust="false", shard_size=2, **flags) == 0
    assert everything(tmp_path / "a.npz")[""] == everything(tmp_path / "b.npz")[""]
    raw = open_images("raw.npz")
    assert raw.size == (SIZE, SIZE)
    assert len(pixels("raw.npz").flatten(1).unique(dim=0)) == 6
    assert pixels("raw.npz").float().std() > 5  # something, not one colour
    assert (raw.labels is not None) == has_classes
    if has_classes:
        assert raw.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert raw.class_names == CLASSES


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    first = seeded("cpu", seed, DRAW, 0).initial_seed()
    return [torch.Generator().manual_seed((first + i) % 2**32) for i in range(n)]


@pytest.mark.parametrize("family", ["ddpm", "ddim", "consistency", "dit", "text"])
def test_the_library_makes_the_same_images_from_the_same_noise(checkpoint, family):
    """Its own call, with a generator for each image."""
    _, flags, has_classes = FAMILIES[family]
    save(family)
    flags = {"generator_steps": STEPS, "num_images": 4, **flags}
    assert run(checkpoint, "diffusers:pipeline", "a.npz", keep_raw="raw.npz", **flags) == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained("pipeline")
    call = {"generator": generators(4), "num_inference_steps": STEPS, "output_type": "np"}
    y = [404, 817, 7, 404] if family == "dit" else [0, 1, 2, 0]
    call |= {"class_labels": y} if has_classes else {}
    call |= {"batch_size": 4} if family not in ("dit", "text") else {}
    call |= {"prompt": ["an old ship"] * 4} if family == "text" else {}
    call |= {"guidance_scale": 2} if family == "dit" else {}
    expected = to_u8(torch.as_tensor(pipe(**call).images).permute(0, 3, 1, 2))
    assert torch.equal(pixels("raw.npz"), expected)


def test_edm_is_sampled_as_its_equations_say(checkpoint):
    """Karras et al. 2022, Euler's steps: F sees c_in x and c_noise; c_skip x + c_out F is the denoised image."""
    save("edm")
    assert run(checkpoint, "diffusers:pipeline", "a.npz", keep_raw="raw.npz", generator_steps=STEPS, num_images=2) == 0
    network = unet().eval()
    s = [80 ** (1 / 7) + i / (STEPS - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(STEPS)]
    sigmas = [one**7 for one in s] + [0.0]
    x = torch.cat([torch.randn(1, 3, SIZE, SIZE, generator=one) for one in generators(2)]) * (80**2 + 1) ** 0.5
    with torch.no_grad():
        for sigma, following in itertools.pairwise(sigmas):
            total = sigma**2 + 0.5**2
            out = network(x / total**0.5, torch.tensor(0.25 * math.log(sigma))).sample
            denoised = 0.25 / total * x + sigma * 0.5 / total**0.5 * out
            x = x + (x - denoised) / sigma * (following - sigma)
    difference = (pixels("raw.npz").int() - to_u8(x / 2 + 0.5).int()).abs()
    assert difference.max() <= 1


def test_the_classes_of_a_unet_reach_it(checkpoint):
    """With the noise of one image for all classes, images differ."""
    save("classes")
    flags = {"generator_steps": STEPS, "num_images": 1}
    seen = []
    for name in CLASSES:
        out = f"{name}.npz"
        assert run(checkpoint, "diffusers:pipeline", out, classes=name, keep_raw=f"raw-{out}", **flags) == 0
        seen.append(pixels(f"raw-{out}"))
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 3


def test_another_scheduler_takes_the_pipelines_schedule_from_its_noisiest_step_on(checkpoint, monkeypatch):
    save("ddpm")
    used = []
    original = diffusers.DDIMScheduler.set_timesteps

    def set_timesteps(self, *args, **settings):
        original(self, *args, **settings)
        used.append((self.config.num_train_timesteps, self.timesteps.tolist()))

    monkeypatch.setattr(diffusers.DDIMScheduler, "set_timesteps", set_timesteps)
    flags = {"generator_scheduler": "DDIMScheduler", "generator_steps": 4, "num_images": 2}
    assert run(checkpoint, "diffusers:pipeline", "a.npz", **flags) == 0
    assert used[-1] == (100, [99, 74, 49, 24])


def test_the_layout_and_network_of_ddpm_cifar10_32(checkpoint):
    """All files in one folder, weights in the type that is asked for; 35.7 M random parameters here."""
    network = diffusers.UNet2DModel(
        act_fn="silu",
        attention_head_dim=None,
        block_out_channels=(128, 256, 256, 256),
        center_input_sample=False,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        in_channels=3,
        layers_per_block=2,
        mid_block_scale_factor=1,
        norm_eps=1e-6,
        norm_num_groups=32,
        out_channels=3,
        sample_size=32,
        time_embedding_type="positional",
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307
    network.save_pretrained("ddpm-cifar10-32")
    diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=True).save_pretrained("ddpm-cifar10-32")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    Path("ddpm-cifar10-32/model_index.json").write_text(json.dumps(index))
    flags = {"num_images": 2, "generator_steps": 2, "keep_raw": "raw.npz", "generator_precision": "bf16"}
    assert run("cifar10-l2-small", "diffusers:ddpm-cifar10-32", "a.npz", **flags) == 0
    assert pixels("raw.npz").shape == (2, 3, 32, 32)


BAD = {
    "prompt missing": ("text", {}, "generator_prompt: is required: diffusers:pipeline is a StableDiffusionPipeline"),
    "prompt for none": (
        "ddpm",
        {"generator_prompt": "x"},
        "generator_prompt: diffusers:pipeline is a DDPMPipeline, wh",
    ),
    "guidance for none": (
        "latent",
        {"generator_guidance": 2},
        "generator_guidance: diffusers:pipeline is a LDMPipeline",
    ),
    "classes for none": ("ddim", {"classes": "bird"}, "classes: 'bird', but diffusers:pipeline takes no classes"),
    "scheduler": ("ddpm", {"generator_scheduler": "DDIMSchedule"}, "generator_scheduler: 'DDIMSchedule' is none of"),
    "too many steps": ("ddpm", {"generator_steps": 500}, "failed at 2 images (ValueError: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_a_pipeline_is_one_line(checkpoint, capsys, case):
    family, flags, message = BAD[case]
    save(family)
    capsys.readouterr()
    assert run(checkpoint, "diffusers:pipeline", "out.npz", **{"num_images": 2, **flags}) == 2
    assert message in complaint(capsys)
    assert not Path("out.npz").exists()


def test_a_hub_that_cannot_be_reached_is_one_line(checkpoint, capsys, monkeypatch):
    def offline(name, **_):
        raise OSError(f"Cannot load model {name}: the model is not cached and an error occurred")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", offline)
    assert run(checkpoint, "diffusers:google/ddpm-cifar10-32", "out.npz") == 2
    said = complaint(capsys)
    assert "google/ddpm-cifar10-32 is no folder here, and the hub does not give it (OSError: Cannot load model" in said
    assert "download it elsewhere and name its folder: diffusers:FOLDER" in said


def test_a_downloaded_pipeline_is_read_from_where_it_lies(checkpoint, monkeypatch, tmp_path):
    save("ddpm")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda name, **_: str(tmp_path / "pipeline"))
    flags = {"generator_steps": STEPS, "num_images": 2}
    assert run(checkpoint, "diffusers:google/ddpm-cifar10-32", "a.npz", **flags) == 0
    assert run(checkpoint, "diffusers:pipeline", "b.npz", **flags) == 0
    assert everything(tmp_path / "a.npz")[""] == everything(tmp_path / "b.npz")[""]
