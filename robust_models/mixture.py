"""Mixtures of Gaussians: fitted by expectation-maximisation, sampled, and reduced to one Gaussian.

In D dimensions component k has weight w_k, mean m_k and covariance A_k A_k^T + s_k I with A_k of R columns: the leading
directions, and the mean variance of the others (probabilistic PCA, Tipping & Bishop 1999). R = D loses nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-4  # added to every variance, as arXiv:1906.09453 does
_ROUNDS = 20  # of expectation-maximisation, after as many of k-means


@dataclass(frozen=True)
class Mixture:
    """K Gaussians in D dimensions, float64."""

    weights: Tensor  # [K], their sum 1
    means: Tensor  # [K,D]
    factors: Tensor  # A, [K,D,R]
    noise: Tensor  # s, [K]

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor, rank: int) -> "Mixture":
        """From covariances [K,D,D], of which the `rank` leading directions are kept; their traces remain."""
        values, vectors = torch.linalg.eigh(covariances)
        rest, leading = values[:, : values.shape[1] - rank], values[:, values.shape[1] - rank :]
        noise = rest.mean(dim=1) if rest.shape[1] else torch.zeros_like(weights)
        sizes = (leading - noise.unsqueeze(1)).clamp_min(0).sqrt()
        return cls(weights, means, vectors[:, :, values.shape[1] - rank :] * sizes.unsqueeze(1), noise)

    @classmethod
    def merged(cls, mixtures: "Sequence[Mixture]") -> "Mixture":
        """Each of them equally often."""
        weights, means, factors, noise = (
            torch.cat([getattr(mixture, name) for mixture in mixtures])
            for name in ("weights", "means", "factors", "noise")
        )
        return cls(weights / weights.sum(), means, factors, noise)

    @property
    def covariances(self) -> Tensor:
        """[K,D,D]."""
        identity = torch.eye(self.means.shape[1], dtype=self.means.dtype)
        return self.factors @ self.factors.mT + self.noise.view(-1, 1, 1) * identity

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw, [D]."""
        k = int(torch.multinomial(self.weights, 1, generator=generator))
        along = torch.randn(self.factors.shape[2], generator=generator, dtype=self.means.dtype)
        around = torch.randn(self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.factors[k] @ along + self.noise[k].sqrt() * around

    def principal(self, variance: float, spread: float) -> "Mixture":
        """The fewest leading directions that hold the share `variance` of each Gaussian's, `spread` times as wide.

        Where all R directions hold less than that, these are what is left.
        """
        lengths = self.factors.norm(dim=1).clamp_min(torch.finfo(self.factors.dtype).tiny)
        along = lengths.square() + self.noise.unsqueeze(1)  # the columns of A are orthogonal
        others = self.means.shape[1] - along.shape[1]
        ordered, order = along.sort(dim=1, descending=True)
        before = ordered.cumsum(dim=1) - ordered  # what the directions before each one hold
        kept = before < variance * (along.sum(dim=1) + others * self.noise).unsqueeze(1)
        widths = spread * along.sqrt() * kept.gather(1, order.argsort(dim=1))
        factors = self.factors * (widths / lengths).unsqueeze(1)
        return Mixture(self.weights, self.means, factors, torch.zeros_like(self.noise))

    def as_one(self) -> "Mixture":
        """The single Gaussian with the same mean and covariance."""
        if len(self.weights) == 1:
            return self
        weights = self.weights.view(-1, 1, 1)
        mean = (weights[:, 0] * self.means).sum(dim=0, keepdim=True)
        gaps = (self.means - mean).unsqueeze(2)
        covariance = (weights * (self.covariances + gaps @ gaps.mT)).sum(dim=0, keepdim=True)
        return Mixture.of(torch.ones(1, dtype=mean.dtype), mean, covariance, mean.shape[1])


def fit(x: Tensor, components: int, *, rank: int, generator: torch.Generator) -> Mixture:
    """x [N,D] -> the mixture that maximises the likelihood, from k-means on.

    Each covariance is drawn towards their weighted mean as if that had been seen in D images more, which keeps those of
    small components from collapsing. One component is the Gaussian of x's mean and covariance. RIDGE is added to all.
    """
    x = x.double()
    shares = _by_k_means(x, components, generator)
    for _ in range(_ROUNDS if components > 1 else 0):
        shares = _shares(x, *_moments(x, shares))
    return Mixture.of(*_moments(x, shares), rank)


def log_likelihood(x: Tensor, mixture: Mixture) -> float:
    """Mean over x [N,D], in nats."""
    return float(_joint(x.double(), mixture.weights, mixture.means, mixture.covariances).logsumexp(dim=1).mean())


def _moments(x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """shares [N,K], each image's summing to 1 -> weights [K], means [K,D], covariances [K,D,D]."""
    counts = shares.sum(dim=0).clamp_min(torch.finfo(x.dtype).tiny)
    means = (shares.T @ x) / counts.unsqueeze(1)
    scatters = torch.stack([_scatter(x - mean, share) for mean, share in zip(means, shares.T, strict=True)])
    within = scatters.sum(dim=0) / len(x)
    unseen = x.shape[1]
    covariances = (scatters + unseen * within) / (counts + unseen).view(-1, 1, 1)
    return counts / len(x), means, covariances + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)


def _scatter(gaps: Tensor, share: Tensor) -> Tensor:
    return (gaps * share.unsqueeze(1)).T @ gaps


def _shares(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """How probable it is that each image is of each component, [N,K]."""
    return _joint(x, weights, means, covariances).softmax(dim=1)


def _joint(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Log-density of each image together with each component, [N,K]."""
    roots = torch.linalg.cholesky(covariances)
    gaps = (x - means.unsqueeze(1)).mT  # [K,D,N]
    lengths = torch.stack([_whitened(root, gap) for root, gap in zip(roots, gaps, strict=True)], dim=1)
    volumes = roots.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return weights.log() - volumes - (lengths + x.shape[1] * math.log(2 * math.pi)) / 2


def _whitened(root: Tensor, gap: Tensor) -> Tensor:
    """Squared Mahalanobis length of each column of gap [D,N], where root is the covariance's lower triangle."""
    return torch.linalg.solve_triangular(root, gap, upper=False).square().sum(dim=0)


def _by_k_means(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Lloyd's clusters from random images on, as shares [N,K] of 0 and 1; an empty one restarts at the worst image."""
    centers = x[torch.randperm(len(x), generator=generator)[:components]]
    nearest = torch.zeros(len(x), dtype=torch.int64)
    for _ in range(_ROUNDS if components > 1 else 0):
        distances = torch.cdist(x, centers)
        nearest = distances.argmin(dim=1)
        for k in range(components):
            members = x[nearest == k]
            centers[k] = members.mean(dim=0) if len(members) else x[distances.amin(dim=1).argmax()]
    return F.one_hot(nearest, components).to(x.dtype)
