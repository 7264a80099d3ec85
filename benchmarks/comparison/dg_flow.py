"""Discriminator Gradient flow of noise or pixels (Ansari et al. 2021, arXiv:2012.00780).

z <- z + eta s grad d(z) + sqrt(2 eta gamma) noise, without a term that holds z near its prior. s is 1 for the
Kullback-Leibler divergence, 1 / (1 + e^d) for log D and 1 / (1 + e^-d) for Jensen and Shannon's.
"""

from typing import Literal

from torch import Tensor

from benchmarks.comparison.latent_gan import Generators, LatentGan, Rival, normal

Divergence = Literal["kl", "logd", "js"]


class GradientFlow(Rival):
    def __init__(
        self,
        gan: LatentGan,
        steps: int = 25,
        step_size: float = 0.1,
        gamma: float = 0.01,
        divergence: Divergence = "kl",
    ) -> None:
        super().__init__(gan)
        self.steps, self.step_size, self.gamma = steps, step_size, gamma
        self.divergence: Divergence = divergence

    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        z = self.gan.start(generators, y)
        for _ in range(self.steps):
            d, gradient = self.gan.gradient(z, y)
            s = speed(d, self.divergence).view(-1, *[1] * (z.ndim - 1))
            noise = (2 * self.step_size * self.gamma) ** 0.5 * normal(generators, z.shape[1:])
            z = z + self.step_size * s * gradient + noise
        return z


def speed(d: Tensor, divergence: Divergence) -> Tensor:
    """s of logits d."""
    return {"kl": 0 * d + 1, "logd": (-d).sigmoid(), "js": d.sigmoid()}[divergence]
