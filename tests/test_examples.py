"""The examples, with tiny random networks."""

import sys

import numpy as np
import pytest
import torch

from examples import diffusers_pipeline, gan_loop
from refine import Refiner
from robust_models import open_images


@pytest.fixture
def generator():
    return gan_loop.Generator(dim=8, classes=3, size=16).eval()


def test_a_gan_in_the_loop(classifier, generator):
    refiner = Refiner(classifier, eps=0.5, pixel_range=(-1, 1), targets="given")
    batches = list(gan_loop.samples(generator, refiner, 7, batch_size=4))
    assert [len(images) for images, _ in batches] == [4, 3]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.manual_seed(1)
    (refined, y), *_ = gan_loop.samples(generator, refiner, 4)
    torch.manual_seed(1)
    raw = generator(torch.randn(4, 8), y.clone()).detach()
    half_moved = (refined - raw).flatten(1).norm(dim=1) / 2  # in units of [0,1] pixels
    torch.testing.assert_close(half_moved, torch.full((4,), 0.5), rtol=0, atol=0.01)


def test_the_gan_example_writes_a_set(checkpoint, generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gan_loop, "Generator", lambda: generator)
    out = tmp_path / "samples.npz"
    monkeypatch.setattr(sys, "argv", ["gan_loop.py", "--ckpt", str(checkpoint), "--num-images", "6", "--out", str(out)])
    gan_loop.main()
    assert "6 refined samples" in capsys.readouterr().out
    written = open_images(out)
    assert (len(written), written.size) == (6, (16, 16))
    assert written.labels is not None
    assert written.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.fixture
def pipeline():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=10))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_diffusers_pipeline(classifier, pipeline):
    def sample(refiner):
        call = {"batch_size": 3, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
        return diffusers_pipeline.refine_pipeline_output(pipeline, refiner, torch.tensor([0, 1, 2]), **call)

    raw, refined = sample(Refiner(classifier, eps=0)), sample(Refiner(classifier, eps=1))
    assert refined.shape == (3, 3, 16, 16)
    assert refined.dtype == torch.float32
    moved = (refined - raw).flatten(1).norm(dim=1)
    assert (moved <= 1 + 1e-5).all()
    assert (moved > 0.1).all()


def test_the_diffusers_example_writes_a_folder(checkpoint, pipeline, tmp_path, monkeypatch, capsys):
    pipeline.save_pretrained(tmp_path / "pipeline")
    argv = ["diffusers_pipeline.py", str(tmp_path / "pipeline"), "--ckpt", str(checkpoint), "--num-images", "2"]
    monkeypatch.setattr(sys, "argv", [*argv, "--inference-steps", "2", "--out", str(tmp_path / "samples")])
    diffusers_pipeline.main()
    assert "2 refined samples" in capsys.readouterr().out
    assert np.unique(open_images(tmp_path / "samples").read(0, 2)).size > 10
