"""The generators that are trained here, by name."""

from benchmarks.generators import biggan, cgan_pd, dcgan, diffusion, sngan, ssgan, vae, wgan_gp
from benchmarks.generators.model import Model

MODELS: dict[str, Model] = {
    "vae": vae.MODEL,
    "dcgan": dcgan.MODEL,
    "wgan-gp": wgan_gp.MODEL,
    "sngan": sngan.MODEL,
    "ssgan": ssgan.MODEL,
    "cgan-pd": cgan_pd.MODEL,
    "biggan": biggan.BIGGAN,
    "diff-biggan": biggan.DIFF_BIGGAN,
    "edm": diffusion.EDM_MODEL,
    "ddpm": diffusion.DDPM_MODEL,
}
