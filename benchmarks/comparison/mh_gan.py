"""MH-GAN (Turner et al. 2019, arXiv:1811.11357): each image ends a Metropolis-Hastings chain of samples.

The chain begins at a real image and goes to a proposal with probability min(1, exp(d' - d)), which is the paper's
(1/D - 1) / (1/D' - 1) in log-odds. It is begun anew while no proposal was taken. d has to be calibrated.
"""

import torch
from torch import Tensor

from benchmarks.comparison.latent_gan import Generators, LatentGan, Rival, normal, picked, uniform

RESTARTS = 20  # chains of an image at most; then the proposal with the highest logit is taken


class MetropolisHastings(Rival):
    def __init__(self, gan: LatentGan, starts: list[Tensor], proposals: int = 640) -> None:
        """starts: logits of real images that the discriminator did not learn from, of each class (or of all)."""
        super().__init__(gan)
        self.starts, self.proposals = starts, proposals

    def choose(self, generators: Generators, y: Tensor | None) -> Tensor:
        n = len(generators)
        chosen, fallback = (torch.zeros(n, *self.gan.z_shape) for _ in range(2))
        best = torch.full((n,), -torch.inf)
        left = torch.arange(n)
        for _ in range(RESTARTS):
            drawing, classes = [generators[i] for i in left.tolist()], picked(y, left)
            d, moved = self._real_start(drawing, classes), torch.zeros(len(left), dtype=torch.bool)
            for _ in range(self.proposals):
                z, threshold = normal(drawing, self.gan.z_shape), uniform(drawing)
                proposed = self.gan.logits(z, classes)
                taken = threshold.log() < proposed - d
                chosen[left[taken]], d[taken] = z[taken], proposed[taken]
                moved |= taken
                higher = proposed > best[left]
                fallback[left[higher]], best[left[higher]] = z[higher], proposed[higher]
            left = left[~moved]
            if not len(left):
                break
        chosen[left] = fallback[left]
        return chosen

    def _real_start(self, generators: Generators, y: Tensor | None) -> Tensor:
        classes = [0] * len(generators) if y is None else y.tolist()
        index = uniform(generators).tolist()
        return torch.stack([self.starts[c][int(u * len(self.starts[c]))] for c, u in zip(classes, index, strict=True)])
