"""DDLS (Che et al. 2020, arXiv:2003.06060): Langevin sampling of z from the density N(0, 1) exp(d(z)).

With E(z) = ||z||^2 / 2 - d(z): z <- z - (e / 2) grad E + sqrt(e) noise. `noise` multiplies the last term; 1 is the
sampler of that density. StudioGAN's code takes noise of that variance where its name says deviation, and lowers it.
"""

from torch import Tensor

from benchmarks.comparison.latent_gan import Generators, LatentGan, Rival, normal


class LangevinSampling(Rival):
    def __init__(self, gan: LatentGan, steps: int = 1000, step_size: float = 0.01, noise: float = 1.0) -> None:
        super().__init__(gan)
        self.steps, self.step_size, self.noise = steps, step_size, noise

    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        z = normal(generators, self.gan.z_shape)
        for _ in range(self.steps):
            _, gradient = self.gan.gradient(z, y)
            drift = self.step_size / 2 * (gradient - z)
            z = z + drift + self.step_size**0.5 * self.noise * normal(generators, self.gan.z_shape)
        return z
