"""Diffusion models: networks, noise and samplers of the package diffusers, saved as a pipeline of it.

EDM (Karras et al. 2022, arXiv:2206.00364) of classes, small enough for two CPU cores, and DDPM (Ho et al. 2020,
arXiv:2006.11239) as published: FID 3.17 after 800,000 steps (50,000 images, 1,000 denoising steps).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generators.model import SIZE, Batch, Model, Recipe, Setting, Trainable, adam, computing
from refine.generators.pipelines import UnetSampler

P_MEAN, P_STD = -1.2, 1.2  # of the logarithm of EDM's sigma in training
PICTURE_STEPS = 18
CPU = Recipe(network="unet", steps=20_000, width=32, batch_size=64, lr=1e-3, warmup=500, ema=0.999)
PUBLISHED = Recipe(network="unet", steps=800_000, width=128, batch_size=128, lr=2e-4, warmup=5000, ema=0.9999)


class Denoising(Trainable):
    """A UNet2DModel in training, and the scheduler that samples with it."""

    scheduler: Any

    def __init__(self, unet: Any, setting: Setting) -> None:
        self.setting, self.unet = setting, unet
        self.networks = nn.ModuleDict({"generator": unet})
        self.networks.to(setting.device)  # group norms are slow in channels_last on a CPU: 48.6 images/s against 63.5
        self.optimizers = {"unet": adam(unet, setting.recipe.lr, setting.recipe.betas)}

    def step(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        ((x, y),) = batches
        with computing(self.unet, self.setting.precision):
            loss = self.loss(x, y)
        self.optimizers["unet"].zero_grad()
        loss.backward()
        self.optimizers["unet"].step()
        return {"loss": loss}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def as_in_training(self, generator: nn.Module, batch: Batch) -> None:
        """Its norms are of groups of channels, without statistics."""

    def pipeline(self, unet: Any) -> Any:
        """What diffusers opens, with this network."""
        from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

        return DDPMPipeline(unet, self.scheduler)

    def sampler(self, generator: nn.Module, device: torch.device) -> UnetSampler:
        pipeline = self.pipeline(generator).to(device)
        pipeline.set_progress_bar_config(disable=True)
        return UnetSampler(pipeline, PICTURE_STEPS)


class EDM(Denoising):
    def __init__(self, setting: Setting) -> None:
        from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

        super().__init__(_unet(setting.recipe.width, setting.num_classes, time_embedding_type="positional"), setting)
        self.scheduler = EDMEulerScheduler()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean of lambda(sigma) ||D(x + sigma n) - x||^2 per pixel (the paper's equation 8).

        lambda is 1 / c_out^2, so that this is the mean square error of the network's own output.
        """
        sigma = (torch.randn(len(x), 1, 1, 1, device=x.device) * P_STD + P_MEAN).exp()
        noisy = x + sigma * torch.randn_like(x)
        data, total = self.scheduler.config.sigma_data, sigma.square() + self.scheduler.config.sigma_data**2
        out = self.unet(noisy / total.sqrt(), sigma.flatten().log() / 4, class_labels=y).sample.float()
        target = (x - data**2 / total * noisy) * total.sqrt() / (sigma * data)
        return F.mse_loss(out, target)


class DDPM(Denoising):
    def __init__(self, setting: Setting) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        super().__init__(_unet(setting.recipe.width, None, dropout=0.1, freq_shift=1, downsample_padding=0), setting)
        self.scheduler = DDPMScheduler()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean square error of the predicted noise (the paper's equation 14)."""
        noise = torch.randn_like(x)
        t = torch.randint(self.scheduler.config.num_train_timesteps, (len(x),), device=x.device)
        return F.mse_loss(self.unet(self.scheduler.add_noise(x, noise, t), t).sample.float(), noise)


def _unet(width: int, num_classes: int | None, **settings: Any) -> Any:
    """The shape of DDPM's network on CIFAR-10: width 128 has 35.7 M parameters, 32 has 2.3 M."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=min(32, width // 2),
        num_class_embeds=num_classes,
        **settings,
    )


EDM_MODEL = Model("small class-conditional diffusion", {"cpu": CPU}, EDM)
DDPM_MODEL = Model("unconditional diffusion", {"published": PUBLISHED}, DDPM)
